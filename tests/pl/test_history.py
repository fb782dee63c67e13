"""Curves of the loss."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import trvae


def test_history_has_the_terms_of_the_loss(model):
    axes = trvae.pl.history(model, show=False)
    assert [ax.get_ylabel() for ax in axes] == [
        "objective [nats per cell]",
        "reconstruction [nats per cell]",
        "KL divergence [nats per cell]",
        "squared MMD",
    ]
    terms = ["objective", "reconstruction_loss", "kl_local", "mmd"]
    for ax, term in zip(axes, terms, strict=True):
        texts = [text.get_text() for text in ax.get_legend().get_texts()]
        assert texts == ["training", "validation"]
        for line, kind, handle in zip(
            ax.lines, ["train", "validation"], ax.get_legend().legend_handles, strict=True
        ):
            logged = model.history[f"{term}_{kind}"].iloc[:, 0].astype(float)
            np.testing.assert_array_equal(line.get_ydata(), logged)
            np.testing.assert_array_equal(line.get_xdata(), logged.index)
            assert handle.get_color() == line.get_color()


def test_terms_are_chosen(model):
    _, given = plt.subplots(2)
    assert trvae.pl.history(model, terms=["loss", "kl_weight"], ax=given) == list(given)
    np.testing.assert_array_equal(
        given[0].lines[1].get_ydata(), model.history["validation_loss"].iloc[:, 0].astype(float)
    )
    assert len(given[1].lines) == 1
    for terms in (["elbow"], []):
        with pytest.raises(ValueError, match="'elbo'"):
            trvae.pl.history(model, terms=terms)


def test_few_epochs_have_markers_and_many_have_none():
    for n_epochs, marker in ((1, "o"), (100, "None")):
        few = SimpleNamespace(history={"mmd_train": pd.DataFrame({"mmd": np.ones(n_epochs)})})
        ax = trvae.pl.history(few, terms="mmd", show=False)
        assert ax.lines[0].get_marker() == marker


def test_models_without_history(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(RuntimeError, match=r"no training history.*model.train\(\)"):
        trvae.pl.history(trvae.TRVAE(adata, n_latent=2))
    with pytest.raises(ValueError, match=r"no history .*model.models\[0\]"):
        trvae.pl.history(trvae.TRVAEEnsemble(adata, n_models=2, n_latent=2))
