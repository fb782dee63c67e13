"""TRVAE of scArches 0.6.1: encoded with the source condition, decoded with the target condition.

It has no prediction of its own; counts are drawn from the decoded negative binomial (``nb``), and
log-normalised values are the decoded mean (``mse``).
"""

import anndata
import numpy as np
import torch
from interface import read_task, write_prediction
from scarches_prediction import predict

# Gone from anndata since this release, which imports it.
anndata.read = anndata.read_h5ad
import scarches  # noqa: E402

task = read_task()
torch.manual_seed(task.seed)
np.random.seed(task.seed)
model = scarches.models.TRVAE(
    adata=task.train,
    condition_key="condition",
    conditions=list(task.train.obs["condition"].unique()),
    hidden_layer_sizes=[128, 128],
    recon_loss=task.variant,
    mmd_on="y",
)
model.train(
    n_epochs=100,
    alpha_epoch_anneal=200,
    early_stopping_kwargs={
        "early_stopping_metric": "val_unweighted_loss",
        "threshold": 0,
        "patience": 20,
        "reduce_lr": True,
        "lr_patience": 13,
        "lr_factor": 0.1,
    },
    seed=task.seed,
    monitor=False,
)
source = np.full(task.control.n_obs, task.source, dtype=object)
write_prediction(task, predict(model, task.control.X, source, task.target, task.seed))
