"""Measures that a public library has, too, on real cells."""

import anndata
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import rbf_kernel

import trvae
from trvae import metrics

LABELS = ["NK", "B", "CD8T", "CD4T"]


@pytest.fixture(scope="module")
def cells():
    """Log-normalised cells, at most 60 of each label and condition; 400 genes."""
    adata = trvae.datasets.kang18()
    adata = adata[adata.obs["cell_type"].isin(LABELS), :400].copy()
    groups = adata.obs.groupby(["cell_type", "condition"], observed=True)
    adata = adata[groups.head(60).index].copy()
    values = metrics.log_normalized(adata, target_sum=1e3, library_key="n_counts")
    return anndata.AnnData(values, adata.obs, adata.var[[]])


def of(cells, label, condition):
    chosen = (cells.obs["cell_type"] == label) & (cells.obs["condition"] == condition)
    return cells.X[chosen.to_numpy()]


def test_distances_are_those_of_pot(cells):
    ot = pytest.importorskip(
        "ot", reason="POT is not installed: pip install 'trvae-tools[parity]'"
    )
    a, b = of(cells, "NK", "control"), of(cells, "NK", "stimulated")
    wasserstein = np.mean([ot.wasserstein_1d(*pair, p=1) for pair in zip(a.T, b.T, strict=True)])
    assert metrics.wasserstein_distance(a, b) == pytest.approx(wasserstein, rel=1e-6)
    between, *within = (
        ot.dist(*pair, metric="euclidean").mean() for pair in ((a, b), (a, a), (b, b))
    )
    assert metrics.energy_distance(a, b) == pytest.approx(2 * between - sum(within), rel=1e-6)
    axes = np.linalg.svd(a - a.mean(0), full_matrices=False)[2][:5].T
    a, b = a @ axes, b @ axes
    covariances = np.cov(a.T), np.cov(b.T)
    gaussian = ot.gaussian.bures_wasserstein_distance(a.mean(0), b.mean(0), *covariances)
    assert metrics.frechet_distance(a, b) == pytest.approx(gaussian**2, rel=1e-6)


def test_mmd_and_r2_are_those_of_scikit_learn(cells):
    a, b = of(cells, "NK", "control"), of(cells, "NK", "stimulated")
    median = np.median(pdist(b, "sqeuclidean"))
    gammas = [1 / (median * factor) for factor in (0.25, 0.5, 1, 2, 4)]
    between, *within = (
        np.mean([rbf_kernel(*pair, gamma) for gamma in gammas])
        for pair in ((a, b), (a, a), (b, b))
    )
    mmd = metrics.maximum_mean_discrepancy(a, b)
    assert mmd == pytest.approx(sum(within) - 2 * between, rel=1e-6)
    for ours, statistic in ((metrics.r2_of_means, np.mean), (metrics.r2_of_variances, np.var)):
        x, y = statistic(a, axis=0)[:, None], statistic(b, axis=0)
        # Of a line through the points, R2 is the squared correlation.
        assert ours(a, b) == pytest.approx(LinearRegression().fit(x, y).score(x, y), rel=1e-6)


def test_measures_are_those_of_cell_eval(cells):
    """Each label's control cells as a prediction of its stimulated ones, from one control."""
    cell_eval = pytest.importorskip(
        "cell_eval", reason="cell-eval is not installed: pip install 'trvae-tools[parity]'"
    )
    both = {"real": "stimulated", "pred": "control"}
    data = {}
    for side, condition in both.items():
        parts = [
            cells[cells.obs["condition"] == condition],
            cells[cells.obs["condition"] == "control"],
        ]
        data[side] = anndata.concat([parts[0], parts[1][parts[1].obs["cell_type"] == "NK"]])
        names = np.repeat(
            ["treated", "control"], [parts[0].n_obs, len(data[side]) - parts[0].n_obs]
        )
        labels = data[side].obs["cell_type"].astype(str)
        data[side].obs["group"] = np.where(names == "control", "control", labels)
        data[side].obs_names_make_unique()
    pair = cell_eval.PerturbationAnndataPair(**data, pert_col="group", control_pert="control")
    theirs = {
        name: getattr(cell_eval.metrics, name)(pair) for name in ("mse", "pearson_delta")
    } | {"rank": cell_eval.metrics.discrimination_score(pair, metric="l2")}
    control = of(cells, "NK", "control")
    change = {label: of(cells, label, "stimulated").mean(0) - control.mean(0) for label in LABELS}
    for label in LABELS:
        predicted, observed = of(cells, label, "control"), of(cells, label, "stimulated")
        assert metrics.rmse_of_means(predicted, observed) ** 2 == pytest.approx(
            theirs["mse"][label], rel=1e-6
        )
        if label != "NK":  # Whose prediction is the control.
            correlation = metrics.pearson_of_change(predicted, observed, control)
            assert correlation == pytest.approx(theirs["pearson_delta"][label], rel=1e-6)
        others = np.array([change[other] for other in LABELS if other != label])
        ours = metrics.discrimination(predicted.mean(0) - control.mean(0), change[label], others)
        # Theirs ranks the label among all, ours among the others.
        share = 1 - (1 - theirs["rank"][label]) * len(LABELS) / len(others)
        assert ours == pytest.approx(share)
