"""Values that plots are drawn from: known ones, and those of small models."""

from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from helpers import QUIET, fit

import trvae


@pytest.fixture(autouse=True)
def _defaults():
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


@pytest.fixture
def groups(adata):
    """Predicted, observed and control cells: counts."""
    treated = adata.obs["condition"] == "treated"
    return adata[treated].copy(), adata[treated][::2].copy(), adata[~treated].copy()


@pytest.fixture(scope="session")
def model():
    return fit(trvae.datasets.simulated(n_cells=15, n_genes=20), train={"max_epochs": 2})


@pytest.fixture(scope="session")
def image_model():
    """A model that is barely trained: what is drawn counts, not how well."""
    adata = trvae.datasets.stroke_digits()[::100].copy()
    trvae.ImageTRVAE.setup_anndata(
        adata,
        condition_key="condition",
        labels_key="digit",
        image_shape=adata.uns["image_shape"],
    )
    model = trvae.ImageTRVAE(adata, seed=0)
    model.train(max_epochs=1, **QUIET)
    return model


@pytest.fixture
def given_groups():
    """Log-normalised values of 3 labels, the last of which has no observed cells."""

    def make(change=0.0):
        cell, gene = np.indices((36, 9))
        noise = ((7 * cell + 5 * gene) % 11) / 11
        control = np.maximum(0.3 * gene + noise - 0.7, 0)
        effect = np.where(gene % 3 == 0, 0.5 + 0.2 * gene, 0)
        observed = control + (effect + 0.1 * (cell // 12)) * noise
        predicted = control + (0.8 * effect + 0.1) * noise[::-1]
        predicted[:, 6] += change
        groups = [AnnData(values) for values in (predicted, observed, control)]
        for cells in groups:
            cells.obs["cell_type"] = pd.Categorical(np.repeat(["B cells", "T cells", "NK"], 12))
            cells.var_names = [f"gene_{i}" for i in range(9)]
        groups[1] = groups[1][:24].copy()
        return groups

    return make


@pytest.fixture
def given_model():
    """What a UMAP asks of a model, with known values."""

    def make(change=0.0, n_cells=60):
        cell = np.arange(n_cells)
        values = 0.1 * (cell[:, None] % np.array([3, 5, 7]))
        values[: n_cells // 6] += change
        adata = AnnData(values)
        adata.obs["condition"] = pd.Categorical(np.where(cell % 2 == 0, "control", "treated"))
        adata.obs["cell_type"] = pd.Categorical(np.array(["B", "NK", "T"])[3 * cell // n_cells])
        return SimpleNamespace(
            adata=adata,
            registry={"setup_args": {"condition_key": "condition", "labels_key": "cell_type"}},
            get_latent_representation=lambda _, indices: values[indices],
            get_mmd_representation=lambda _, indices: -values[indices],
        )

    return make
