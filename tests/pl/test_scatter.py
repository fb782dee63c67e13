"""Predicted against observed: where points are and which are named."""

import numpy as np
import pytest

import trvae


def named_genes(ax):
    return {text.get_text() for text in ax.texts if text.get_text().startswith("gene_")}


def test_means_are_where_they_belong(groups):
    predicted, observed, control = groups
    ax = trvae.pl.mean_scatter(predicted, observed, control, show=False)
    x, y = ax.collections[0].get_offsets().T
    scale = {"target_sum": trvae.metrics.median_library_size(control)}
    np.testing.assert_allclose(x, trvae.metrics.log_normalized(observed, **scale).mean(0))
    np.testing.assert_allclose(y, trvae.metrics.log_normalized(predicted, **scale).mean(0))
    assert ax.get_xlabel() == "observed mean of log-normalised expression"
    assert "R^2" in ax.texts[0].get_text()


def test_genes_that_change_most_are_named(groups):
    predicted, observed, control = groups
    change = trvae.pl.response(predicted, observed, control, n_genes=3, show=False)
    x, _ = change.collections[0].get_offsets().T
    largest = {observed.var_names[i] for i in np.argsort(-np.abs(x))[:3]}
    assert named_genes(change) == largest
    chosen = trvae.pl.response(predicted, observed, control, genes=["gene_4"], show=False)
    assert named_genes(chosen) == {"gene_4"}
    none = trvae.pl.response(predicted, observed, control, n_genes=0, show=False)
    assert named_genes(none) == set()


def test_variances(groups):
    means, variances = trvae.pl.mean_scatter(*groups, statistic="both", show=False)
    assert means.get_ylabel().startswith("predicted mean")
    assert variances.get_ylabel().startswith("predicted variance")
    alone = trvae.pl.mean_scatter(*groups, statistic="variance", show=False)
    for one, other in zip(alone.collections, variances.collections, strict=True):
        np.testing.assert_array_equal(one.get_offsets(), other.get_offsets())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"statistic": "median"}, "statistic must be one of 'mean', 'variance', 'both'"),
        ({"genes": ["gene_1", "ACTB"]}, "'ACTB'"),
        ({"n_genes": -1}, "n_genes must be a non-negative integer"),
    ],
)
def test_wrong_arguments(groups, arguments, words):
    with pytest.raises(ValueError, match=words):
        trvae.pl.mean_scatter(*groups, **arguments)
