"""trvaep 0.1.0 with the settings of its own example of transferring, on log-normalised values."""

import numpy as np
import torch
from interface import read_task, write_prediction
from mended_trvaep import MendedTrainer
from trvaep import CVAE

task = read_task()
torch.manual_seed(task.seed)
np.random.seed(task.seed)
model = CVAE(
    task.train.n_vars,
    num_classes=task.train.obs["condition"].nunique(),
    encoder_layer_sizes=[64],
    decoder_layer_sizes=[64],
    latent_dim=10,
    alpha=0.0001,
    use_mmd=True,
    beta=10,
)
trainer = MendedTrainer(model, task.train, condition_key="condition", seed=task.seed)
trainer.train_trvae(100, 64)
predicted = model.predict(
    x=task.control.X, y=task.control.obs["condition"].tolist(), target=task.target
)
write_prediction(task, predicted)
