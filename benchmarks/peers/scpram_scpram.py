"""scPRAM 0.0.3 with the settings of its tutorial.

Its ``predict`` draws without a seed and takes the control cells from the cells to learn from.
"""

import numpy as np
import torch
from interface import read_task, write_prediction
from scpram import models

task = read_task()
torch.manual_seed(task.seed)
np.random.seed(task.seed)
(label,) = task.control.obs["label"].unique()
keys = {
    "condition_key": "condition",
    "cell_type_key": "label",
    "ctrl_key": task.source,
    "stim_key": task.target,
    "pred_key": "predicted",
}
model = models.SCPRAM(input_dim=task.train.n_vars, device="cpu")
model.train_SCPRAM(task.train, epochs=100)
predicted = model.predict(train_adata=task.train, cell_to_pred=label, key_dic=keys, ratio=0.005)
write_prediction(task, predicted[task.control.obs_names].X)
