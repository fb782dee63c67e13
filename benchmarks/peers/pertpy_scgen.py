"""scGen as pertpy 1.4.0 has it, with the settings of its tutorial."""

import pertpy
import scvi
from interface import read_task, write_prediction

task = read_task()
scvi.settings.seed = task.seed
pertpy.tl.Scgen.setup_anndata(task.train, batch_key="condition", labels_key="label")
model = pertpy.tl.Scgen(task.train)
model.train(max_epochs=100, batch_size=32, early_stopping=True, early_stopping_patience=25)
predicted, _ = model.predict(
    ctrl_key=task.source, stim_key=task.target, adata_to_predict=task.control
)
write_prediction(task, predicted[task.control.obs_names].X)
