import numpy as np
import pytest
from anndata import AnnData
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


def test_energy_distance():
    a, b = RNG.normal(size=(60, 3)), RNG.normal(size=(40, 3)) + 1
    assert metrics.energy_distance(a, a) == pytest.approx(0)
    assert metrics.energy_distance(a, b) == pytest.approx(metrics.energy_distance(b, a))
    assert metrics.energy_distance(a, b) > metrics.energy_distance(a, b - 1) > 0
    # scipy's is for one dimension and is the square root.
    one = metrics.energy_distance(a[:, :1], b[:, :1])
    assert one == pytest.approx(energy_distance_1d(a[:, 0], b[:, 0]) ** 2)


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


def test_perfect_prediction_beats_everything():
    control, observed, reference = groups()
    table = metrics.transfer_metrics(observed, observed, control, reference=reference, **REFERENCE)
    assert list(table.index) == [
        "prediction", "no change", "mean shift", "nearest shift", "ceiling",
    ]  # fmt: skip
    best = table.loc["prediction"]
    for measure in ("r2_mean", "r2_variance", "r2_mean_top", "change", "change_top"):
        assert best[measure] == pytest.approx(1)
        assert (table[measure].dropna() <= 1 + 1e-9).all()
    assert best["rmse"] == pytest.approx(0)
    assert best["energy_distance"] == pytest.approx(0)


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
    for shift in ("mean shift", "nearest shift"):
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


def test_counts_are_not_compared_with_expectations():
    control, observed, _ = groups()
    expected = observed.copy()
    expected.X = expected.X * 0.7
    with pytest.raises(ValueError, match="observed, control hold counts, but predicted values"):
        metrics.transfer_metrics(expected, observed, control)
    with pytest.raises(ValueError, match="observed, control hold counts, but predicted values"):
        trvae.pl.response(expected, observed, control, show=False)


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
