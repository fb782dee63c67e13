"""TRVAE of scArches 0.6.1: encoded with the source condition, decoded with the target condition.

It has no prediction of its own; counts are drawn from the decoded negative binomial (``nb``), and
log-normalised values are the decoded mean (``mse``).
"""

import anndata
import numpy as np
import torch
from interface import draw_counts, read_task, write_prediction

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
network, encoder = model.model.eval(), model.model.condition_encoder
device = next(network.parameters()).device
z = model.get_latent(
    task.control.X, np.full(task.control.n_obs, task.source, dtype=object), mean=True
)
target = torch.full((task.control.n_obs,), encoder[task.target], device=device)
with torch.no_grad():
    decoded = network.decoder(torch.as_tensor(z, device=device), target)[0].cpu().numpy()
    theta = (
        network.theta[:, encoder[task.target]].exp().cpu().numpy() if task.variant == "nb" else 0
    )
if task.variant == "nb":
    mean = decoded * task.control.X.sum(1, keepdims=True)
    decoded = draw_counts(mean, theta, task.seed)
write_prediction(task, decoded)
