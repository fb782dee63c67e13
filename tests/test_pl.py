import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import trvae

mpl.use("agg")


@pytest.fixture
def groups(adata):
    treated = adata.obs["condition"] == "treated"
    return adata[treated].copy(), adata[treated][::2].copy(), adata[~treated].copy()


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def named_genes(ax):
    return {text.get_text() for text in ax.texts if text.get_text().startswith("gene_")}


def test_means_are_where_they_belong(groups):
    predicted, observed, control = groups
    ax = trvae.pl.mean_scatter(predicted, observed, control, show=False)
    x, y = ax.collections[0].get_offsets().T
    scale = {"target_sum": trvae.metrics.median_library_size(control)}
    np.testing.assert_allclose(x, trvae.metrics.log_normalized(observed, **scale).mean(0))
    np.testing.assert_allclose(y, trvae.metrics.log_normalized(predicted, **scale).mean(0))
    assert ax.get_xlabel() == "observed mean"
    assert "R^2" in ax.texts[-1].get_text()


def test_genes_that_change_most_are_named(groups):
    predicted, observed, control = groups
    change = trvae.pl.response(predicted, observed, control, n_genes=3, show=False)
    x, _ = change.collections[0].get_offsets().T
    largest = {observed.var_names[i] for i in np.argsort(-np.abs(x))[:3]}
    assert named_genes(change) == largest
    chosen = trvae.pl.response(predicted, observed, control, genes=["gene_4"], show=False)
    assert named_genes(chosen) == {"gene_4"}


def test_variances(groups):
    ax = trvae.pl.mean_scatter(*groups, statistic="variance", show=False)
    assert ax.get_ylabel() == "predicted variance"


def test_output(groups, tmp_path):
    _, given = plt.subplots()
    assert trvae.pl.response(*groups, ax=given) is given
    figure = trvae.pl.response(*groups, return_fig=True)
    assert isinstance(figure, mpl.figure.Figure)
    trvae.pl.mean_scatter(*groups, save=tmp_path / "means.png")
    assert (tmp_path / "means.png").stat().st_size > 5_000
    assert trvae.pl.mean_scatter(*groups, show=True) is None


def test_wrong_arguments(groups):
    with pytest.raises(ValueError, match="statistic='median' is not one of 'mean', 'variance'"):
        trvae.pl.mean_scatter(*groups, statistic="median")
    with pytest.raises(ValueError, match="not in var_names: .*ACTB"):
        trvae.pl.response(*groups, genes=["ACTB"])
