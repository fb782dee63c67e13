"""The comparison of a prediction with baselines and the ceiling."""

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData

import trvae
from trvae import metrics
from trvae.metrics import _all_measures
from trvae.metrics._all_measures import AllMeasures
from trvae.metrics._baselines import BASELINES, Centroids, centroids, shifted_cells

KEYS = {
    "condition_key": "condition", "labels_key": "cell_type",
    "source_condition": "control", "target_condition": "treated",
}  # fmt: skip
RNG = np.random.default_rng(0)


@pytest.fixture
def groups():
    """Observed and control cells of one type, and all cells but the observed."""
    adata = trvae.datasets.simulated(n_cells=60, n_genes=80)
    own = (adata.obs["cell_type"] == "type_0").to_numpy()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    chosen = {"observed": own & treated, "control": own & ~treated, "reference": ~own | ~treated}
    return {name: adata[cells].copy() for name, cells in chosen.items()}


def compare(predicted, groups, **kwargs):
    return metrics.transfer_metrics(predicted, **groups, **(KEYS | kwargs))


def test_perfect_prediction_beats_everything(groups):
    before = {name: adata.copy() for name, adata in groups.items()}
    table = compare(groups["observed"], groups)
    assert list(table.index) == ["prediction", *BASELINES]
    best = table.loc["prediction"]
    in_units = ["rmse", "rmse_weighted", "rmse_specific", "energy_distance", "mmd"]
    np.testing.assert_allclose(best[in_units], 0, atol=1e-9)
    assert (table[in_units] > -1e-9).all(axis=None)
    assert best["coverage_top"] == pytest.approx(0.9, abs=0.01)
    others = table.columns.difference([*in_units, "coverage_top"])
    np.testing.assert_allclose(best[others], 1)
    assert (table[others].fillna(0) <= 1 + 1e-9).all(axis=None)
    for name, adata in groups.items():
        assert (adata.X != before[name].X).nnz == 0
        assert adata.obs.equals(before[name].obs)
        assert dict(adata.uns) == dict(before[name].uns)


def test_baselines_of_other_labels_need_a_reference(groups):
    table = metrics.transfer_metrics(groups["observed"], groups["observed"], groups["control"])
    assert list(table.index) == ["prediction", "no change", "ceiling"]
    assert table["rmse_specific"].isna().all()


def test_means_of_labels_with_both_conditions():
    values, label = RNG.random((9, 3)), np.array(list("bbaacadba"))
    condition = np.array([1, 0, 1, 0, 1, 1, 0, 0, 2])
    found = centroids(values, label, condition == 0, condition == 1)
    assert found.names == ["a", "b"]
    np.testing.assert_allclose(found.source, [values[3], values[[1, 7]].mean(0)])
    np.testing.assert_allclose(found.target, [values[[2, 5]].mean(0), values[0]])
    np.testing.assert_array_equal(found.n_cells, [3, 3])


@pytest.mark.parametrize("sign", [1, -1])
def test_shifts_have_known_answers_and_stay_nonnegative(sign):
    source, change = np.array([[10.0, 10.0], [14.0, 14.0]]), np.array([[1.0, 0.0], [3.0, 0.0]])
    others = Centroids(["a", "b"], source, source + sign * change, np.array([1, 3]))
    control = np.array([[11.0, 11.0], [0.5, 0.5]])
    predicted = shifted_cells(control, others)
    for name, shift in zip(BASELINES[1:-1], [2, 2.5, 1, 2], strict=True):
        np.testing.assert_allclose(predicted[name], (control + [sign * shift, 0]).clip(0))


def test_the_linear_shift_finds_a_change_that_follows_the_control_mean():
    source = RNG.normal(size=(21, 5))
    target = source + source @ RNG.normal(size=(5, 5)) + 10
    others = Centroids([f"type_{i}" for i in range(20)], source[:20], target[:20], np.ones(20))
    predicted = shifted_cells(source[20:], others)
    error = {name: np.abs(values[0] - target[20]).max() for name, values in predicted.items()}
    assert error["linear shift"] < 0.05 < error["mean shift"]


def test_genes_and_components_are_chosen_from_control_and_observed():
    control, observed, predicted = RNG.gamma(2.0, 1.0, (3, 30, 6))
    observed += np.arange(6)
    change_of_others = observed.mean(0) - control.mean(0) + 3 * (np.arange(6) == 2)
    row = AllMeasures(control, observed, change_of_others, 1, 1, 0).row(predicted)
    error = np.abs(predicted.mean(0) - observed.mean(0))
    assert row["rmse_specific"] == pytest.approx(error[2])
    t = metrics.welch_t(control, observed)
    weighted = np.average(error**2, weights=t**2)
    assert row["rmse_weighted"] == pytest.approx(np.sqrt(weighted))
    top = [np.argmax(np.abs(t))]
    assert row["coverage_top"] == metrics.coverage(predicted[:, top], observed[:, top])
    axis = np.linalg.eigh(np.cov(np.vstack([control, observed]).T))[1][:, -1:]
    distance = metrics.energy_distance(predicted @ axis, observed @ axis)
    assert row["energy_distance"] == pytest.approx(distance)


def leak(groups):
    return {"reference": ad.concat([groups["reference"], groups["observed"]])}


def shuffle(groups):
    order, genes = RNG.permutation(60), RNG.permutation(80)
    control = groups["control"][:, genes]
    return {"predicted": control[order], "control": control}


def log_normalise(groups):
    predicted = groups["control"].copy()
    predicted.X = metrics.log_normalized(predicted, target_sum=1e4)
    predicted.uns["log1p"] = {"base": None, "target_sum": 1e4}
    return {"predicted": predicted}


@pytest.mark.parametrize(
    ("change", "rounded"),
    # Rounding decides which of many equal values lie within an interval.
    [(leak, []), (shuffle, []), (log_normalise, ["coverage_top"])],
)
def test_is_not_affected_by(change, rounded, groups):
    given = {"predicted": groups["control"], **groups, **KEYS}
    expected = metrics.transfer_metrics(**given).drop(columns=rounded)
    table = metrics.transfer_metrics(**(given | change(groups))).drop(columns=rounded)
    np.testing.assert_allclose(table, expected, rtol=1e-6, atol=1e-9)


def test_values_can_be_compared_as_they_are(groups):
    table = compare(groups["observed"], groups, normalize=False)
    mean = {name: np.ravel(adata.X.mean(0)) for name, adata in groups.items()}
    error = np.sqrt(np.mean((mean["observed"] - mean["control"]) ** 2))
    assert table.loc["no change", "rmse"] == pytest.approx(error)
    cells = groups["reference"][groups["reference"].obs["condition"] == "control"]
    means = cells.to_df().groupby(cells.obs["cell_type"], observed=True).mean()
    distance = (means - means.loc["type_0"]).pow(2).sum(axis=1).drop("type_0")
    assert table.attrs["nearest"] == distance.idxmin()
    # Brighter images are farther apart; as counts, they would be the same.
    brighter = {name: AnnData(4 * a.X, obs=a.obs, var=a.var) for name, a in groups.items()}
    larger = compare(brighter["observed"], brighter, normalize=False)
    in_units = ["rmse", "rmse_specific", "energy_distance"]
    np.testing.assert_allclose(larger[in_units], 4 * table[in_units], rtol=1e-6, atol=1e-9)
    unitless = ["r2_mean", "r2_variance", "change", "coverage_top"]
    np.testing.assert_allclose(larger[unitless], table[unitless], rtol=1e-6)


def test_distances_of_many_cells_are_those_of_seeded_subsets(groups, monkeypatch):
    predicted = groups["reference"][::2]
    exact = compare(predicted, groups).loc["prediction"]
    monkeypatch.setattr(_all_measures, "_MAX_CELLS_FOR_DISTANCE", 40)
    one, again, other = (
        compare(predicted, groups, seed=seed).loc["prediction"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    changed = [column for column in exact.index if one[column] != other[column]]
    assert changed == ["energy_distance", "mmd"]
    np.testing.assert_allclose(one[changed], exact[changed], rtol=0.3)
    np.testing.assert_array_equal(one.drop(changed), exact.drop(changed))


def logged(adata):
    return AnnData(adata.X.log1p(), obs=adata.obs, var=adata.var)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {"predicted": g["control"][:1]}, "predicted has 1 cells; 2 or more"),
        (
            lambda g: {"control": g["control"][:, [0, *range(g["control"].n_vars)]]},
            "control.var_names are not unique: 'gene_0'",
        ),
        (lambda g: {"predicted": g["control"][:, 1:]}, "predicted lacks genes .*: 'gene_0'"),
        (lambda g: {"reference": g["reference"][:, 1:]}, "reference lacks genes .*: 'gene_0'"),
        (lambda g: {"predicted": logged(g["control"])}, "hold counts, but predicted values"),
        (lambda g: {"reference": logged(g["reference"])}, "hold counts, but reference values"),
        (lambda g: {"reference": g["control"]}, "no other label with cells of both"),
        *[(lambda g, key=key: {key: None}, "target_condition are needed") for key in KEYS],
        (lambda g: {"n_top_genes": 0}, "n_top_genes must be a positive integer"),
        (lambda g: {"n_pcs": 1.5}, "n_pcs must be a positive integer"),
        (lambda g: {"seed": -1}, "seed must be"),
        (lambda g: {"normalize": False, "library_key": "size"}, "no effect with normalize=False"),
    ],
)
def test_refuses(change, message, groups):
    given = {"predicted": groups["control"], **groups, **KEYS}
    with pytest.raises(ValueError, match=message):
        metrics.transfer_metrics(**(given | change(groups)))
