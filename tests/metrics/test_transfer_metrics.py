"""The comparison of a prediction with baselines and a replicate."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

import trvae
from trvae import metrics
from trvae.counterfactual._draws import cell_keys
from trvae.metrics import _all_measures
from trvae.metrics._all_measures import AllMeasures
from trvae.metrics._baselines import (
    BASELINES,
    REPLICATE,
    Centroids,
    centroids,
    linear_counts,
    shifted_cells,
)
from trvae.metrics._skill import errors

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


def with_nan(cells):
    cells = cells.copy()
    cells.X[0, 0] = np.nan
    return cells


def compare(predicted, groups, **kwargs):
    return metrics.transfer_metrics(predicted, **groups, **(KEYS | kwargs))


def test_genes_that_observed_lacks_do_not_matter(groups):
    fewer = groups | {"observed": groups["observed"][:, :40].copy()}
    same = {name: adata[:, :40].copy() for name, adata in groups.items()}
    tables = [compare(groups["control"], chosen) for chosen in (fewer, same)]
    pd.testing.assert_frame_equal(*tables)


def test_values_of_genes_that_observed_lacks_may_be_missing(groups):
    logs = {name: logged(cells) for name, cells in groups.items()}
    logs["observed"] = logs["observed"][:, 1:].copy()
    expected = compare(logs["control"], logs)
    for cells in (logs["control"], logs["reference"]):
        cells.X[0, 0] = np.nan
    pd.testing.assert_frame_equal(compare(logs["control"], logs), expected)


def test_half_precision_sums_in_double(groups):
    for adata in groups.values():
        adata.X = np.minimum(adata.X.toarray() * 1_000, 10_000).astype("float16")
        assert np.isinf(adata.X.sum(1)).any()
    assert np.isfinite(compare(groups["control"], groups)["rmse"]).all()


def test_perfect_prediction_beats_everything(groups):
    before = {name: adata.copy() for name, adata in groups.items()}
    table = compare(groups["observed"], groups)
    assert list(table.index) == ["prediction", *BASELINES, REPLICATE]
    assert list(table.columns) == list(metrics.MEASURES)
    best, error = table.loc["prediction"], errors(table)
    assert best["coverage_top"] == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(error.loc["prediction"].drop("coverage_top"), 0, atol=1e-7)
    assert (table.loc[list(BASELINES), "coverage_top"] <= 1).all()
    for name, adata in groups.items():
        assert (adata.X != before[name].X).nnz == 0
        assert adata.obs.equals(before[name].obs)
        assert dict(adata.uns) == dict(before[name].uns)


def test_baselines_of_other_labels_need_a_reference(groups):
    table = metrics.transfer_metrics(groups["observed"], groups["observed"], groups["control"])
    assert list(table.index) == ["prediction", "no change", REPLICATE]
    need_others = ["rmse_specific", "change_specific", "discrimination"]
    assert table[need_others].isna().all(axis=None)
    assert table.loc["no change"].drop([*need_others, "change", "change_top"]).notna().any()


def new_counts(rates, seed):
    """Counts of as many new cells, drawn as the simulated ones are from theirs."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(rates), len(rates))
    return rng.poisson(rng.gamma(5.0, rates[rows] / 5.0))


def draw_from_the_truth(n_draws, n_cells=150):
    """Measures of baselines, and of cells drawn from the rates that the observed were drawn from."""
    adata = trvae.datasets.simulated(
        n_cells=n_cells, n_genes=120, n_cell_types=5, n_lineages=2, affected_cell_types=[0, 3, 4]
    )
    own = (adata.obs["cell_type"] == "type_0").to_numpy()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    chosen = {"observed": own & treated, "control": own & ~treated, "reference": ~own | ~treated}
    split = {name: adata[cells].copy() for name, cells in chosen.items()}
    rates = split["observed"].layers["rate"]
    tables = []
    for seed in range(n_draws):
        counts = new_counts(rates, seed)
        tables.append(compare(AnnData(counts.astype(float), var=adata.var[[]]), split, seed=seed))
    return tables


def test_a_true_draw_beats_every_baseline_and_scores_like_a_replicate():
    tables = [errors(table) for table in draw_from_the_truth(8)]
    mean = sum(tables) / len(tables)
    baselines = mean.loc[list(BASELINES)].drop(columns=["de_precision", "coverage_top"])
    is_ahead = mean.loc["prediction", baselines.columns] <= baselines.min() + 1e-9
    assert is_ahead.all(), is_ahead[~is_ahead].index
    distances = [name for name in metrics.MEASURES if name.startswith(("energy", "mmd", "rmse"))]
    ratio = mean.loc["prediction", distances] / mean.loc[REPLICATE, distances]
    np.testing.assert_allclose(ratio, 1, atol=0.25)


def test_predictions_with_the_same_errors_score_the_same():
    """Whatever of a response the other labels don't show, no measure looks for a baseline's errors."""
    rng = np.random.default_rng(0)
    control, change = rng.normal(5, 1, (50, 200)), rng.normal(size=(6, 200))
    observed = rng.normal(5, 1, (40, 200)) + change[-1] * (rng.random(200) < 0.1)
    missed = observed.mean(0) - control.mean(0) - change[:5].mean(0)
    of_shift = control + change[:5].mean(0)
    # Misses as much as the mean shift does, of other genes.
    of_other = control + observed.mean(0) - control.mean(0) + rng.permutation(missed)
    others = of_other_labels(change[:5], control)
    measures = AllMeasures(control, observed, others, 50, 10, 0)
    shift, other = measures.row(of_shift), measures.row(of_other)
    assert shift["rmse"] == pytest.approx(other["rmse"])
    assert shift["rmse_specific"] == pytest.approx(other["rmse_specific"], rel=0.25)
    # The genes are those of the other labels, whatever was observed.
    everything_else = AllMeasures(control, observed + 3 * change[0], others, 50, 10, 0)
    np.testing.assert_array_equal(measures._specific, everything_else._specific)


DEGENERATE = {
    "noise-free": lambda x: np.tile(x.mean(0), (len(x), 1)),
    "silent": lambda x: np.zeros_like(x),
    "constant": lambda x: np.full_like(x, 0.7),
    "tiny": lambda x: x[:2],
    "a silent gene": lambda x: x * (np.arange(x.shape[1]) > 0),
    "one gene": lambda x: x[:, :1],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("of", ["predicted", "observed", "control", "all"])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_groups_have_finite_measures_or_none(kind, of):
    groups = dict(
        zip(["control", "observed", "predicted"], RNG.gamma(2, 0.3, (3, 20, 8)), strict=True)
    )
    others = RNG.normal(size=(3, 8))
    if kind == "one gene":
        groups, others = {n: x[:, :1] for n, x in groups.items()}, others[:, :1]
    else:
        groups |= {n: DEGENERATE[kind](x) for n, x in groups.items() if of in (n, "all")}
    others = of_other_labels(others, groups["control"])
    measures = AllMeasures(groups["control"], groups["observed"], others, 3, 2, 0, np.log(2))
    for row in (
        measures.row(groups["predicted"]),
        measures.row(groups["observed"]),
        measures.replicates().mean().to_dict(),
    ):
        assert not np.isinf(list(row.values())).any()
        assert all(
            np.isfinite(row[name]) for name in row if name.startswith(("energy", "mmd", "rmse_w"))
        )
    assert errors(pd.DataFrame([measures.row(groups["observed"])]))["energy_distance"].max() < 1e-6


def test_standard_errors_are_those_of_new_samples():
    """The bootstrap's standard error of a measure is how much it varies from draw to draw."""
    adata = trvae.datasets.simulated(n_cells=80, n_genes=40, n_cell_types=2)
    own = adata.obs["cell_type"] == "type_0"
    cells = {
        name: adata[own & (adata.obs["condition"] == name)].copy()
        for name in ("control", "treated")
    }
    rates = cells["treated"].layers["rate"]

    def draw(seed):
        return AnnData(new_counts(rates, seed).astype(float), var=adata.var[[]])

    tables = [
        metrics.transfer_metrics(draw(seed), draw(100 + seed), cells["control"])
        for seed in range(25)
    ]
    spread = pd.DataFrame([table.loc["prediction"] for table in tables]).std()
    table = metrics.transfer_metrics(draw(1000), draw(2000), cells["control"], n_bootstrap=25)
    for name in ("r2_variance", "rmse_log_fold_change", "wasserstein", "de_recall"):
        assert 0.4 < table.loc["prediction", f"{name}_se"] / spread[name] < 2.5, name
    # A replicate varies as its two samples do.
    assert 0 < table.loc[REPLICATE, "rmse_se"] < 3 * table.loc["prediction", "rmse_se"]


def test_a_summary_is_printed_whole(groups):
    table = compare(groups["reference"][:60], groups)
    summary = metrics.summarize(table)
    assert "..." not in str(summary)
    np.testing.assert_allclose(summary["RMSE ↓"], table["rmse"], atol=5e-4)
    np.testing.assert_allclose(summary["R² mean ↑"], table["r2_mean"], atol=5e-4)
    of_label = table.rename_axis("method").reset_index().assign(label="type_0", seed=0)
    pd.testing.assert_frame_equal(metrics.summarize(of_label), summary.rename_axis("method"))
    of_two = metrics.summarize(pd.concat([of_label, of_label.assign(label="type_1")]))
    assert of_two.index.names == ["label", "method"]
    pd.testing.assert_frame_equal(of_two.loc["type_1"], summary.rename_axis("method"))
    of_seed = of_label.assign(seed=np.where(of_label["method"] == "prediction", 0, np.nan))
    assert metrics.summarize(of_seed).index.names == ["method"]
    with pytest.raises(ValueError, match="table has no 'rmse'. It must be of transfer_metrics"):
        metrics.summarize(table.drop(columns="rmse"))


def test_skill_is_0_for_the_best_baseline_and_1_for_a_replicate(groups):
    tables = {
        seed: compare(groups["reference"][:60], groups, seed=seed)
        .rename_axis("method")
        .reset_index()
        for seed in (0, 1)
    }
    table = pd.concat(
        [t.assign(label=str(seed), target_condition="t") for seed, t in tables.items()]
    )
    table = table.reset_index(drop=True)
    scores = metrics.skill_scores(table)
    assert list(scores["method"]) == list(table["method"])
    for _, rows in scores.groupby("label"):
        by_method = rows.set_index("method")[list(metrics.MEASURES)]
        defined = by_method.loc[REPLICATE].notna()
        assert defined.sum() > 15
        np.testing.assert_allclose(by_method.loc[REPLICATE][defined], 1)
        np.testing.assert_allclose(by_method.loc[list(BASELINES)].max()[defined], 0, atol=1e-12)
    value, baseline, replicate = (
        tables[0].set_index("method").loc[name, "rmse"]
        for name in ("prediction", "linear shift", REPLICATE)
    )
    unnamed = metrics.skill_scores(table.assign(source_condition=None))
    pd.testing.assert_frame_equal(unnamed.drop(columns="source_condition"), scores)
    assert (
        metrics.summarize(
            table.assign(source_condition=[None] * (len(table) - 1) + ["c"])
        ).index.names[1]
        == "source_condition"
    )
    with pytest.raises(ValueError, match="table has no 'rmse'. It must be of transfer_metrics"):
        metrics.skill_scores(table.drop(columns="rmse"))
    with pytest.raises(ValueError, match="table has no column 'method'"):
        metrics.paired_differences(table.drop(columns="method"))
    single = metrics.skill_scores(tables[0].set_index("method").assign(rmse_se=0.1))
    assert "rmse_se" not in single
    best = tables[0].set_index("method").loc[list(BASELINES), "rmse"].min()
    expected = (value - best) / (replicate - best)
    assert single.loc["prediction", "rmse"] == pytest.approx(expected)


def test_paired_differences_have_known_answers():
    rows = [
        {"label": label, "target_condition": "t", "method": method, "seed": seed}
        | dict.fromkeys(metrics.MEASURES, value)
        for label, by_method in {
            "A": {"ours": [0.2, 0.4], "mean shift": [0.5], "linear shift": [0.6]},
            "B": {"ours": [0.1, 0.1], "mean shift": [0.9], "linear shift": [0.3]},
        }.items()
        for method, values in by_method.items()
        for seed, value in enumerate(values)
    ]
    table = pd.DataFrame(rows)
    result = metrics.paired_differences(table, "ours")
    # Lower is better, so the advantages are 0.5 - 0.3 and 0.3 - 0.1.
    row = result.loc["rmse"]
    assert (row["n"], row["n_better"], row["verdict"]) == (2, 2, "ahead")
    np.testing.assert_allclose(row[["advantage", "low", "high"]].astype(float), 0.2)
    assert row["sd_of_seeds"] == pytest.approx(np.std([0.2, 0.4], ddof=1) / 2)
    assert result.loc["r2_mean", "verdict"] == "undecided"
    assert result.loc["r2_mean", "advantage"] == pytest.approx((0.4 - 0.7 + 0.1 - 0.9) / 2)
    against = metrics.paired_differences(table, "mean shift", "linear shift").loc["rmse"]
    half = stats.t.ppf(0.975, 1) * np.std([0.1, -0.6], ddof=1) / np.sqrt(2)
    assert against["high"] - against["advantage"] == pytest.approx(half)
    assert against["verdict"] == "undecided"
    # Of two source conditions, pairs are not averaged.
    worse = table.assign(source_condition="b", rmse=-table["rmse"])
    both = pd.concat([table.assign(source_condition="a"), worse], ignore_index=True)
    assert metrics.paired_differences(both, "ours").loc["rmse", "n"] == 4
    missing = metrics.paired_differences(table.assign(source_condition=None), "ours")
    pd.testing.assert_frame_equal(missing, result)
    assert result.loc["rmse", "n_missing"] == 0
    # A measure that only other seeds have is no lead.
    failed = table.assign(rmse=table["rmse"].where(table["seed"].ne(1) | table["label"].ne("A")))
    row = metrics.paired_differences(failed, "ours").loc["rmse"]
    assert (row["n"], row["n_missing"], row["verdict"]) == (2, 1, "undecided")
    absent = table[(table["method"] != "ours") | (table["label"] != "A")]
    row = metrics.paired_differences(absent, "ours").loc["rmse"]
    assert (row["n"], row["n_missing"], row["verdict"]) == (1, 1, "undecided")
    with pytest.raises(ValueError, match="no method 'theirs', only 'ours'"):
        metrics.paired_differences(table, "theirs")


def of_other_labels(changes, cells):
    """Labels with these changes, ``n_labels x n_genes``."""
    names = [f"type_{i}" for i in range(len(changes))]
    return Centroids(names, 0 * changes, changes, np.ones(len(changes)), cells)


def test_means_of_labels_with_both_conditions():
    values, label = RNG.random((9, 3)), np.array(list("bbaacadba"))
    condition = np.array([1, 0, 1, 0, 1, 1, 0, 0, 2])
    found = centroids(values, label, condition == 0, condition == 1)
    assert found.names == ["a", "b"]
    np.testing.assert_allclose(found.source, [values[3], values[[1, 7]].mean(0)])
    np.testing.assert_allclose(found.target, [values[[2, 5]].mean(0), values[0]])
    np.testing.assert_array_equal(found.n_cells, [3, 3])
    np.testing.assert_array_equal(
        found.cells, values[[1, 2, 3, 5, 7, 0]][np.argsort([1, 2, 3, 5, 7, 0])]
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_shifts_have_known_answers_and_stay_nonnegative(sign):
    source, change = np.array([[10.0, 10.0], [14.0, 14.0]]), np.array([[1.0, 0.0], [3.0, 0.0]])
    others = Centroids(["a", "b"], source, source + sign * change, np.array([1, 3]), source)
    control = np.array([[11.0, 11.0], [0.5, 0.5]])
    predicted = shifted_cells(control, others)
    assert list(predicted) == [*BASELINES[1:-1]]
    for name, shift in zip(predicted, [2, 2.5, 1, 2], strict=True):
        np.testing.assert_allclose(predicted[name], (control + [sign * shift, 0]).clip(0))


def test_the_linear_shift_finds_a_change_that_follows_the_control_mean():
    source = RNG.normal(size=(21, 5))
    target = source + source @ RNG.normal(size=(5, 5)) + 10
    others = Centroids(
        [f"type_{i}" for i in range(20)], source[:20], target[:20], np.ones(20), source
    )
    predicted = shifted_cells(source[20:], others)
    error = {name: np.abs(values[0] - target[20]).max() for name, values in predicted.items()}
    assert error["linear shift"] < 0.05 < error["mean shift"]


def test_linear_counts_have_the_response_of_the_labels():
    share, factor = RNG.dirichlet(np.full(20, 5.0)), np.repeat([2.0, 0.5], 10)
    source = np.tile(share, (3, 1))
    others = Centroids(list("abc"), source, factor * source, np.ones(3), source)
    counts = RNG.poisson(500 * share, (2000, 20)).astype(float)
    keys = cell_keys(pd.Index(range(2000)))
    drawn = linear_counts(counts, np.full(2000, 500.0), keys, others, 0)
    np.testing.assert_allclose(drawn.mean(0), 500 * share * factor, rtol=0.1)
    # The same cells, with more or less.
    assert (drawn[:, :10] >= counts[:, :10]).all()
    assert (drawn[:, 10:] <= counts[:, 10:]).all()


def test_genes_and_components_are_chosen_from_control_and_observed():
    control, observed, predicted = RNG.gamma(2.0, 1.0, (3, 30, 6))
    observed += np.arange(6)
    changes = RNG.normal(size=(3, 6)) * np.where(np.arange(6) == 2, 5, 1)
    others = of_other_labels(changes, RNG.gamma(2.0, 1.0, (30, 6)))
    row = AllMeasures(control, observed, others, 1, 1, 0).row(predicted)
    error = np.abs(predicted.mean(0) - observed.mean(0))
    assert row["rmse_specific"] == pytest.approx(error[2])
    t = metrics.welch_t(control, observed)
    weighted = np.average(error**2, weights=t**2)
    assert row["rmse_weighted"] == pytest.approx(np.sqrt(weighted))
    top = [np.argmax(np.abs(t))]
    assert row["coverage_top"] == metrics.coverage(predicted[:, top], observed[:, top])
    axis = np.linalg.eigh(np.cov(others.cells.T))[1][:, -1:]
    change = (observed.mean(0) - control.mean(0))[:, None]
    beyond = change - axis @ axis.T @ change
    axes = np.hstack([axis, beyond / np.linalg.norm(beyond)])
    distance = metrics.energy_distance(predicted @ axes, observed @ axes)
    assert row["energy_distance"] == pytest.approx(distance)


def leak(groups):
    return {"reference": ad.concat([groups["reference"], groups["observed"]])}


def shuffle(groups):
    order, genes = RNG.permutation(60), RNG.permutation(80)
    control = groups["control"][:, genes]
    return {"predicted": control[order], "control": control}


def shuffle_the_rest(groups):
    rest = {name: groups[name] for name in ("observed", "reference")}
    return {name: cells[RNG.permutation(cells.n_obs)].copy() for name, cells in rest.items()}


def log_normalise(groups):
    predicted = groups["control"].copy()
    predicted.X = metrics.log_normalized(predicted, target_sum=1e4)
    predicted.uns["log1p"] = {"base": None, "target_sum": 1e4}
    return {"predicted": predicted}


@pytest.mark.parametrize(
    ("change", "rounded"),
    # Rounding decides which of many equal values lie within an interval.
    [(leak, []), (shuffle, []), (shuffle_the_rest, []), (log_normalise, ["coverage_top"])],
)
def test_is_not_affected_by(change, rounded, groups):
    given = {"predicted": groups["control"], **groups, **KEYS}
    expected = metrics.transfer_metrics(**given).drop(columns=rounded)
    table = metrics.transfer_metrics(**(given | change(groups))).drop(columns=rounded)
    if change is shuffle:
        # Genes in another order draw other cells.
        expected, table = (each.drop(index=REPLICATE) for each in (expected, table))
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
    in_units = ["rmse", "rmse_specific", "wasserstein", "energy_distance", "energy_distance_top"]
    assert table["rmse_log_fold_change"].isna().all()
    np.testing.assert_allclose(larger[in_units], 4 * table[in_units], rtol=1e-6, atol=1e-9)
    of_tests = ["de_overlap", "de_precision", "de_recall", "de_direction", "de_rank_correlation"]
    unitless = ["r2_mean", "r2_variance", "change", "coverage_top", *of_tests]
    np.testing.assert_allclose(larger[unitless], table[unitless], rtol=1e-6)


def logged_to(cells, base):
    logs = logged(cells)
    logs.X = logs.X / np.log(base or np.e)
    logs.uns["log1p"] = {"base": base, "target_sum": 500.0}
    return logs


def test_logarithms_of_another_base(groups):
    natural, other = (
        {name: logged_to(cells, base) for name, cells in groups.items()} for base in (None, 2)
    )
    table, larger = (compare(logs["observed"], logs) for logs in (natural, other))
    np.testing.assert_allclose(larger["rmse"] * np.log(2), table["rmse"])
    assert larger["rmse_log_fold_change"].isna().all()
    scaled = [
        metrics.log_normalized(logs["observed"], target_sum=700.0) for logs in (natural, other)
    ]
    np.testing.assert_allclose(scaled[1] * np.log(2), scaled[0])
    for predicted in (groups["observed"], natural["observed"]):
        with pytest.raises(ValueError, match="different bases .*observed 2"):
            compare(predicted, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": 37.3}, "neither integers nor logarithms"),
        ({"library": np.log1p}, "'n_counts' is smaller than the sum of observed: adata.X"),
        ({"library": lambda sums: 0 * sums}, "'n_counts' must be positive"),
        ({"library": lambda sums: sums.astype(str)}, "'n_counts' must be of real numbers"),
    ],
)
def test_what_can_be_no_counts_or_library_sizes(groups, change, message):
    for cells in groups.values():
        cells.obs["n_counts"] = change.get("library", np.copy)(np.ravel(cells.X.sum(1)))
        cells.X = cells.X * change.get("X", 1)
    with pytest.raises(ValueError, match=message):
        compare(groups["control"], groups, library_key="n_counts")


def test_top_genes_of_a_sparse_prediction_do_not_depend_on_the_order_of_genes(groups):
    """Few genes are predicted to change; the others don't fill the top genes by their position."""
    control, observed = groups["control"], groups["observed"]
    for cells in groups.values():
        cells.obs["n_counts"] = np.ravel(cells.X.sum(1))
    change = abs(np.ravel(observed.X.mean(0) - control.X.mean(0)))
    predicted, changed = control.copy(), np.argsort(-change)[:5]
    predicted.X = predicted.X.toarray()
    predicted.X[:, changed] = observed.X.toarray()[:, changed]
    overlaps = []
    for order in (np.arange(80), np.argsort(-change), np.argsort(change)):
        ordered = {name: cells[:, order].copy() for name, cells in groups.items()}
        table = compare(predicted[:, order], ordered, library_key="n_counts", n_top_genes=40)
        overlaps.append(table.loc["prediction", "de_overlap"])
    assert overlaps == [5 / 40] * 3


def test_distances_of_many_cells_are_those_of_seeded_subsets(groups, monkeypatch):
    predicted = groups["reference"][::2]
    exact = compare(predicted, groups).loc["prediction"]
    monkeypatch.setattr(_all_measures, "_MAX_CELLS_FOR_DISTANCE", 40)
    one, again, other = (
        compare(predicted, groups, seed=seed).loc["prediction"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    changed = [column for column in exact.index if one[column] != other[column]]
    names = ["energy_distance", "mmd"]
    assert changed == [name + space for name in names for space in ("", "_genes", "_top")]
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
        (
            lambda g: {"predicted": with_nan(g["control"])},
            "predicted: adata.X has 1 values .* NaN",
        ),
        (lambda g: {"n_pcs": 1.5}, "n_pcs must be a positive integer"),
        (lambda g: {"seed": -1}, "seed must be"),
        (lambda g: {"normalize": False, "library_key": "size"}, "no effect with normalize=False"),
    ],
)
def test_refuses(change, message, groups):
    given = {"predicted": groups["control"], **groups, **KEYS}
    with pytest.raises(ValueError, match=message):
        metrics.transfer_metrics(**(given | change(groups)))
