"""Models saved by this release, with what they predict, so that later ones are held to it.

Run at each release, in the environment of the lowest versions, and commit the new folder:

    python tests/make_release.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np

import trvae

FOLDER = Path(__file__).parent / "fixtures" / "saved"
TRAINING: dict[str, Any] = {
    "max_epochs": 10, "batch_size": 16, "enable_progress_bar": False, "accelerator": "cpu",
}  # fmt: skip


def predictions(model: Any) -> dict[str, np.ndarray]:
    """What a model says of its own cells."""
    target = model.conditions[-1]
    transferred = model.transfer(target_condition=target, estimate="counterfactual", seed=1).X
    expected = model.get_transferred_expression(target_condition=target, return_numpy=True)
    return {
        "latent": model.get_latent_representation(),
        "first_layer": model.get_mmd_representation(),
        "transferred": np.asarray(getattr(transferred, "todense", lambda: transferred)()),
        "expected": expected,
        "support": model.get_transfer_support(None, target).to_numpy(float),
    }


def expression_model() -> trvae.TRVAE:
    adata = trvae.datasets.simulated(n_cells=8, n_genes=12)
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    adata = anndata.AnnData(adata.X, adata.obs[["condition", "cell_type", "donor"]], adata.var[[]])
    trvae.TRVAE.setup_anndata(
        adata,
        condition_key="condition",
        labels_key="cell_type",
        categorical_covariate_keys=["donor"],
    )
    model = trvae.TRVAE(adata, n_latent=2, hidden_sizes=(8, 4), effect_sizes=(4,), seed=0)
    model.train(**TRAINING)
    return model


def image_model() -> trvae.ImageTRVAE:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36), dtype=np.uint8)
    adata = anndata.AnnData(pixels)
    adata.obs["condition"] = np.resize(["thin", "thick"], adata.n_obs)
    trvae.ImageTRVAE.setup_anndata(adata, condition_key="condition", image_shape=(6, 6))
    model = trvae.ImageTRVAE(adata, n_latent=1, channels=(2, 2), seed=0)
    model.train(**TRAINING)
    return model


if __name__ == "__main__":
    release = FOLDER / trvae.__version__
    shutil.rmtree(release, ignore_errors=True)
    release.mkdir(parents=True)
    for make in (expression_model, image_model):
        model = make()
        folder = release / type(model).__name__
        model.save(folder, save_anndata=True)
        np.savez_compressed(folder / "expected.npz", **predictions(model))
        print(folder, sum(path.stat().st_size for path in folder.iterdir()), "bytes")
