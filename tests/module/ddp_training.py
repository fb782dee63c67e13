"""Train a model in a number of processes and write its weights."""

import sys
from pathlib import Path

import torch

import trvae

n_processes, out = int(sys.argv[1]), Path(sys.argv[2])
adata = trvae.datasets.simulated(n_cells=32, n_genes=30, n_cell_types=2)
trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
model = trvae.TRVAE(
    adata, hidden_sizes=(16,), n_latent=4, effect_sizes=(8,), mmd_weight=10, dropout_rate=0, seed=0
)
# Processes draw z and dropout differently; everything else must be the same.
with model.module.posterior_mean():
    model.train(
        max_epochs=3,
        batch_size=64 // n_processes,
        train_size=1.0,
        accelerator="cpu",
        devices=n_processes,
        strategy="ddp" if n_processes > 1 else "auto",
        enable_progress_bar=False,
    )
if model.trainer.global_rank == 0:
    torch.save(model.module.state_dict(), out)
