import numpy as np
import pytest
from anndata import AnnData
from scipy import linalg
from scipy.stats import energy_distance as energy_distance_1d

import trvae
from trvae import metrics

RNG = np.random.default_rng(0)


def groups():
    """Control and treated cells of one type, and all others."""
    adata = trvae.datasets.simulated(n_cells=150, n_genes=80)
    is_type = (adata.obs["cell_type"] == "type_0").to_numpy()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    held_out = is_type & treated
    return adata[is_type & ~treated].copy(), adata[held_out].copy(), adata[~held_out].copy()


REFERENCE = {
    "condition_key": "condition",
    "labels_key": "cell_type",
    "source_condition": "control",
    "target_condition": "treated",
}


def test_r2_is_the_squared_pearson_correlation():
    observed = RNG.gamma(2.0, 1.0, (50, 30))
    assert metrics.r2_of_means(observed, observed) == pytest.approx(1)
    assert metrics.r2_of_variances(observed, observed) == pytest.approx(1)
    # A correlation knows no scale and no offset, and the square no sign.
    assert metrics.r2_of_means(3 - 2 * observed, observed) == pytest.approx(1)
    other = RNG.gamma(2.0, 1.0, (40, 30))
    expected = np.corrcoef(other.mean(0), observed.mean(0))[0, 1] ** 2
    assert metrics.r2_of_means(other, observed) == pytest.approx(expected)
    assert metrics.r2_of_means(other, observed) == pytest.approx(
        metrics.r2_of_means(observed, other)
    )


def test_constant_genes_have_no_correlation():
    assert np.isnan(metrics.r2_of_means(np.ones((5, 4)), RNG.random((5, 4))))


def test_change_is_measured_from_control():
    control = RNG.random((20, 10))
    change = RNG.normal(size=10)
    assert metrics.pearson_of_change(control + 0.5 * change, control + change, control) == (
        pytest.approx(1)
    )
    assert metrics.pearson_of_change(control - change, control + change, control) == (
        pytest.approx(-1)
    )
    assert np.isnan(metrics.pearson_of_change(control, control + change, control))


def test_rmse():
    observed = RNG.random((20, 10))
    assert metrics.rmse_of_means(observed + 0.3, observed) == pytest.approx(0.3)


def test_frechet_distance():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # Moved, the covariance is the same; in one dimension, standard deviations are compared.
    assert metrics.frechet_distance(a, a + 2.0) == pytest.approx(16)
    x, y = a[:, :1], 3 * a[:, 1:2] + 1
    difference = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert metrics.frechet_distance(x, y) == pytest.approx(difference)
    b = rng.normal(size=(150, 4)) * [1, 2, 3, 4]
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))
    product = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(
        np.cov(a.T) + np.cov(b.T) - 2 * product
    )
    assert metrics.frechet_distance(a, b) == pytest.approx(expected)
    # Fewer images than features are no obstacle.
    assert metrics.frechet_distance(a[:3], b) > 0


def test_energy_distance():
    a, b = RNG.normal(size=(60, 3)), RNG.normal(size=(40, 3)) + 1
    assert metrics.energy_distance(a, a) == pytest.approx(0)
    assert metrics.energy_distance(a, b) == pytest.approx(metrics.energy_distance(b, a))
    assert metrics.energy_distance(a, b) > metrics.energy_distance(a, b - 1) > 0
    # scipy's is for one dimension and is the square root.
    one = metrics.energy_distance(a[:, :1], b[:, :1])
    assert one == pytest.approx(energy_distance_1d(a[:, 0], b[:, 0]) ** 2)


def test_weights_of_the_rmse():
    observed = RNG.random((20, 10))
    error = np.arange(10)
    weights = np.eye(10)[3]
    assert metrics.rmse_of_means(observed + error, observed, weights) == pytest.approx(3)


def test_coverage():
    a, b = RNG.normal(size=(4000, 2)), RNG.normal(size=(3000, 2))
    assert metrics.coverage(a, b) == pytest.approx(0.9, abs=0.02)
    assert metrics.coverage(a, b, level=0.5) == pytest.approx(0.5, abs=0.03)
    assert metrics.coverage(a, 100 + b) == 0
    assert metrics.coverage(0.5 * a, b) < 0.65 < 0.99 < metrics.coverage(2 * a, b)
    # Counts, most of them 0: exact for a distribution against itself.
    counts = RNG.poisson(0.3, (500, 3))
    assert metrics.coverage(counts, counts) == pytest.approx(0.9)
    assert metrics.coverage(np.zeros((10, 1)), np.ones((10, 1))) == 0


def test_mmd():
    a, b = RNG.normal(size=(60, 3)), RNG.normal(size=(40, 3)) + 1
    mmd = metrics.maximum_mean_discrepancy
    assert mmd(a, a) == pytest.approx(0, abs=1e-12)
    assert mmd(a, b) > mmd(a, b - 1) > 0
    # Its bandwidths follow the data, so that it does not depend on the unit.
    assert mmd(10 * a, 10 * b) == pytest.approx(mmd(a, b))
    from sklearn.metrics.pairwise import rbf_kernel

    median = np.median(np.square(b[:, None] - b[None]).sum(-1)[np.triu_indices(40, 1)])

    def kernel(x, y):
        return np.mean([rbf_kernel(x, y, 1 / (median * f)) for f in (0.25, 0.5, 1, 2, 4)])

    assert mmd(a, b) == pytest.approx(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


def test_differential_expression():
    observed_t = np.array([9.0, -8.0, 7.0, 0.1, 0.2, 0.0])
    assert metrics.de_overlap(observed_t, observed_t, 3) == 1
    assert metrics.de_direction(observed_t, observed_t, 3) == 1
    assert metrics.de_rank_correlation(observed_t, observed_t) == pytest.approx(1)
    assert metrics.de_direction(-observed_t, observed_t, 3) == 0
    predicted_t = np.array([5.0, 4.0, 0.0, 6.0, 0.0, 0.0])
    assert metrics.de_overlap(predicted_t, observed_t, 3) == pytest.approx(2 / 3)
    assert metrics.de_direction(predicted_t, observed_t, 3) == pytest.approx(1 / 3)
    nothing = np.zeros(6)
    assert np.isnan(metrics.de_overlap(nothing, observed_t, 3))
    assert metrics.de_direction(nothing, observed_t, 3) == 0
    assert np.isnan(metrics.de_rank_correlation(nothing, observed_t))


def test_the_linear_shift_finds_a_change_that_follows_the_control_mean():
    from trvae.metrics._baselines import Centroids, linear_shift, mean_shift

    rng = np.random.default_rng(0)
    source = rng.normal(size=(21, 5))
    target = source + source @ rng.normal(size=(5, 5)) + 10
    others = Centroids([f"type_{i}" for i in range(20)], source[:20], target[:20], np.ones(20))
    control = source[20] + [[-1e-6], [1e-6]]
    for shift, close in ((linear_shift, True), (mean_shift, False)):
        error = np.abs(shift(control, others).mean(0) - target[20]).max()
        assert (error < 0.05) == close


def test_changed_genes_are_found():
    control, treated = RNG.normal(size=(50, 20)), RNG.normal(size=(60, 20))
    treated[:, [4, 9]] += [5, -3]
    control[:, 0] = treated[:, 0] = 1.0
    ranked = metrics.rank_changed_genes(control, treated)
    assert list(ranked[:2]) == [4, 9]
    assert ranked[-1] == 0
    assert sorted(ranked) == list(range(20))


def test_normalisation():
    counts = RNG.poisson(2.0, (10, 5)).astype(np.float32)
    adata = AnnData(counts)
    adata.obs["total"] = 100.0
    np.testing.assert_allclose(
        metrics.log_normalized(adata, target_sum=50.0, library_key="total"),
        np.log1p(counts / 2),
        rtol=1e-6,
    )
    values = AnnData(np.log1p(counts / 3))
    np.testing.assert_allclose(metrics.log_normalized(values, target_sum=50.0), values.X)
    assert metrics.median_library_size(values) is None
    values.uns["log1p"] = {"target_sum": 100 / 3}
    assert metrics.median_library_size(values) == 100 / 3
    np.testing.assert_allclose(
        metrics.log_normalized(values, target_sum=50.0), np.log1p(counts / 2), rtol=1e-6
    )


def test_perfect_prediction_beats_everything():
    control, observed, reference = groups()
    table = metrics.transfer_metrics(observed, observed, control, reference=reference, **REFERENCE)
    assert list(table.index) == [
        "prediction", "no change", "mean shift", "cell-weighted shift", "nearest shift",
        "linear shift", "ceiling",
    ]  # fmt: skip
    best = table.loc["prediction"]
    for measure in (
        "r2_mean", "r2_variance", "r2_mean_top", "change", "change_top", "de_overlap",
        "de_direction", "de_rank_correlation",
    ):  # fmt: skip
        assert best[measure] == pytest.approx(1)
        assert (table[measure].dropna() <= 1 + 1e-9).all()
    for measure in ("rmse", "rmse_weighted", "rmse_specific", "energy_distance", "mmd"):
        assert best[measure] == pytest.approx(0, abs=1e-9)
    assert best["coverage_top"] == pytest.approx(0.9, abs=0.01)


def test_baselines_have_known_answers():
    # Without noise and with one effect for all types, both shifts are right.
    centers = RNG.random((3, 12)) + 1
    effect = RNG.random(12)
    x, condition, label = [], [], []
    for t, center in enumerate(centers):
        for c in (0, 1):
            x += [center + c * effect + noise for noise in (-0.01, 0.01, 0.0)]
            condition += [["control", "treated"][c]] * 3
            label += [f"type_{t}"] * 3
    adata = AnnData(np.array(x), obs={"condition": condition, "cell_type": label})
    own = adata.obs["cell_type"] == "type_1"
    treated = adata.obs["condition"] == "treated"
    control, observed = adata[own & ~treated], adata[own & treated]
    reference = adata[~(own & treated)]
    table = metrics.transfer_metrics(control, observed, control, reference=reference, **REFERENCE)
    for shift in ("mean shift", "cell-weighted shift", "nearest shift", "linear shift"):
        assert table.loc[shift, "rmse"] == pytest.approx(0, abs=1e-9)
        assert table.loc[shift, "r2_mean"] == pytest.approx(1)
    assert table.loc["no change", "rmse"] == pytest.approx(np.sqrt(np.mean(effect**2)))
    distance = {t: np.linalg.norm(centers[t] - centers[1]) for t in (0, 2)}
    assert table.attrs["nearest"] == f"type_{min(distance, key=distance.get)}"


def test_held_out_cells_in_the_reference_do_not_leak():
    control, observed, reference = groups()
    import anndata

    leaky = anndata.concat([reference, observed])
    honest = metrics.transfer_metrics(
        observed, observed, control, reference=reference, **REFERENCE
    )
    leaked = metrics.transfer_metrics(observed, observed, control, reference=leaky, **REFERENCE)
    np.testing.assert_allclose(leaked, honest)


def test_order_of_cells_and_genes_does_not_matter():
    control, observed, reference = groups()
    order, genes = RNG.permutation(control.n_obs), RNG.permutation(control.n_vars)
    one = metrics.transfer_metrics(control, observed, control, reference=reference, **REFERENCE)
    other = metrics.transfer_metrics(
        control[order][:, genes], observed, control[:, genes], reference=reference, **REFERENCE
    )
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_log_normalised_predictions_can_be_compared_with_counts():
    control, observed, reference = groups()
    as_values = observed.copy()
    as_values.X = metrics.log_normalized(observed, target_sum=1e4)
    with pytest.raises(ValueError, match=r"say in uns\['log1p'\]\['target_sum'\]"):
        metrics.transfer_metrics(as_values, observed, control)
    as_values.uns["log1p"] = {"base": None, "target_sum": 1e4}
    tables = [
        metrics.transfer_metrics(predicted, observed, control, reference=reference, **REFERENCE)
        for predicted in (observed, as_values)
    ]
    # Rounding decides which of many equal values lie within an interval.
    one, other = (table.drop(columns="coverage_top") for table in tables)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


def test_counts_are_not_compared_with_expectations():
    control, observed, _ = groups()
    expected = observed.copy()
    expected.X = expected.X * 0.7
    with pytest.raises(ValueError, match="observed, control hold counts, but predicted values"):
        metrics.transfer_metrics(expected, observed, control)
    with pytest.raises(ValueError, match="observed, control hold counts, but predicted values"):
        trvae.pl.response(expected, observed, control, show=False)


def test_values_can_be_compared_as_they_are():
    control, observed, reference = groups()
    arguments = {"reference": reference, "normalize": False} | REFERENCE
    table = metrics.transfer_metrics(observed, observed, control, **arguments)
    change = observed.X.toarray().mean(0) - control.X.toarray().mean(0)
    assert table.loc["no change", "rmse"] == pytest.approx(np.sqrt(np.mean(change**2)))
    # Brighter images are farther apart; as counts, they would be the same.
    brighter = [3 * adata for adata in (control.X, observed.X, reference.X)]
    scaled = [
        AnnData(x, obs=adata.obs, var=adata.var)
        for x, adata in zip(brighter, (control, observed, reference), strict=True)
    ]
    arguments["reference"] = scaled[2]
    larger = metrics.transfer_metrics(scaled[1], scaled[1], scaled[0], **arguments)
    in_units = ["rmse", "rmse_specific", "energy_distance"]
    np.testing.assert_allclose(larger[in_units], 3 * table[in_units], rtol=1e-6, atol=1e-9)
    without = ["r2_mean", "r2_variance", "change", "coverage_top"]
    np.testing.assert_allclose(larger[without], table[without], rtol=1e-6)
    with pytest.raises(ValueError, match="library_key='size' is of no use with normalize=False"):
        metrics.transfer_metrics(observed, observed, control, library_key="size", normalize=False)


def test_groups_are_not_changed():
    control, observed, reference = groups()
    before = [adata.copy() for adata in (control, observed, reference)]
    metrics.transfer_metrics(control, observed, control, reference=reference, **REFERENCE)
    for adata, copy in zip((control, observed, reference), before, strict=True):
        assert (adata.X != copy.X).nnz == 0
        assert adata.obs.equals(copy.obs)
        assert dict(adata.uns) == dict(copy.uns)


def test_bad_comparisons_are_refused():
    control, observed, reference = groups()
    with pytest.raises(
        ValueError, match="condition_key, labels_key, source_condition and .* needed"
    ):
        metrics.transfer_metrics(control, observed, control, reference=reference)
    with pytest.raises(ValueError, match="predicted has 1 cells; 2 or more"):
        metrics.transfer_metrics(control[:1], observed, control)
    with pytest.raises(ValueError, match="predicted lacks genes .*: 'gene_0'"):
        metrics.transfer_metrics(control[:, 1:], observed, control)
    with pytest.raises(ValueError, match="no other label with cells of both"):
        metrics.transfer_metrics(control, observed, control, reference=control, **REFERENCE)


def test_the_reference_must_be_comparable_and_described():
    control, observed, reference = groups()
    logged = reference.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match="observed, control hold counts, but reference values"):
        metrics.transfer_metrics(observed, observed, control, reference=logged, **REFERENCE)
    with pytest.raises(ValueError, match="reference lacks genes .*'gene_0'"):
        metrics.transfer_metrics(
            observed, observed, control, reference=reference[:, 1:].copy(), **REFERENCE
        )
    with pytest.raises(ValueError, match="source_condition and target_condition are needed"):
        metrics.transfer_metrics(
            observed, observed, control, reference=reference,
            condition_key="condition", labels_key="cell_type",
        )  # fmt: skip
    with pytest.raises(ValueError, match="n_top_genes=0 is not a positive integer"):
        metrics.transfer_metrics(observed, observed, control, n_top_genes=0)


@pytest.mark.parametrize(
    "measure",
    [
        metrics.coverage,
        metrics.energy_distance,
        metrics.frechet_distance,
        metrics.maximum_mean_discrepancy,
        lambda predicted, observed: metrics.pearson_of_change(predicted, observed, observed),
        metrics.r2_of_means,
        metrics.r2_of_variances,
        metrics.rank_changed_genes,
        metrics.rmse_of_means,
        metrics.welch_t,
        lambda predicted, observed: metrics.de_rank_correlation(predicted[0], observed[0]),
    ],
)
def test_groups_of_different_genes_are_an_error(measure):
    with pytest.raises(ValueError):
        measure(RNG.random((6, 3)), RNG.random((6, 4)))
