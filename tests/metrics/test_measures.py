"""Each measure against known answers and other implementations."""

import numpy as np
import pytest
from anndata import AnnData
from scipy import linalg, stats
from sklearn.metrics.pairwise import rbf_kernel

from trvae import metrics

RNG = np.random.default_rng(0)
A, B = RNG.gamma(2.0, 1.0, (50, 30)), RNG.gamma(2.0, 1.0, (40, 30))
CHANGE, ERROR = RNG.normal(size=30), np.arange(30)
COUNTS, ZEROS, PAIR = RNG.poisson(0.3, (500, 3)), np.zeros((10, 1)), np.array([[0.0], [2.0]])
T = np.array([9.0, -8.0, 7.0, 0.1, 0.2, 0.0])
SIGNS, OTHER_SIGNS = np.array([1, 1, -1, 0, 0]), np.array([1, -1, 0, 0, 0])
ONE_OF_TWO = np.log1p(np.array([[3.0, 1.0], [3.0, 1.0]]))
OTHER_T = np.array([5.0, 4.0, 0.0, 6.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("r2_of_means", (A, B), np.corrcoef(A.mean(0), B.mean(0))[0, 1] ** 2),
        ("r2_of_means", (3 - 2 * A, A), 1),
        ("r2_of_means", (0.1 + 1e-14 * A, B), np.nan),
        ("r2_of_variances", (A, B), np.corrcoef(A.var(0), B.var(0))[0, 1] ** 2),
        ("r2_of_variances", (3 - 2 * A, A), 1),
        ("r2_of_variances", (0.1 + 1e-14 * A, B), np.nan),
        ("pearson_of_change", (A + 0.5 * CHANGE, A + CHANGE, A), 1),
        ("pearson_of_change", (A - CHANGE, A + CHANGE, A), -1),
        ("pearson_of_change", (A, A + CHANGE, A), np.nan),
        ("rmse_of_means", (A + ERROR, A), np.sqrt(np.mean(ERROR**2))),
        ("rmse_of_means", (A + ERROR, A, ERROR == 3), 3),
        ("coverage", (A, 100 + A), 0),
        # Exact for counts, most of them 0, against themselves.
        ("coverage", (COUNTS, COUNTS), 0.9),
        ("coverage", (ZEROS, ZEROS + 1), 0),
        ("de_overlap", (T, T, 3), 1),
        ("de_overlap", (OTHER_T, T, 3), 2 / 3),
        ("de_overlap", (0 * T, T, 3), np.nan),
        ("de_direction", (T, T, 3), 1),
        ("de_direction", (-T, T, 3), 0),
        ("de_direction", (OTHER_T, T, 3), 1 / 3),
        ("de_direction", (0 * T, T, 3), 0),
        ("de_direction", (T, T, 0), np.nan),
        ("de_precision", (SIGNS, OTHER_SIGNS), 1 / 3),
        ("de_precision", (0 * SIGNS, OTHER_SIGNS), np.nan),
        ("de_recall", (SIGNS, OTHER_SIGNS), 1 / 2),
        ("de_rank_correlation", (-T, T), -1),
        ("de_rank_correlation", (OTHER_T, T), 0.5 / np.sqrt(15.5 * 17.5)),
        ("de_rank_correlation", (0 * T, T), np.nan),
        ("de_rank_correlation", (T, 0 * T), np.nan),
        ("wasserstein_distance", (A, A), 0),
        ("wasserstein_distance", (A + ERROR, A), ERROR.mean()),
        ("wasserstein_distance", (np.repeat(A, 3, axis=0), A), 0),
        ("rmse_of_log_fold_changes", (np.log1p(4 * A), np.log1p(A)), 0),
        ("rmse_of_log_fold_changes", (ONE_OF_TWO, ONE_OF_TWO[:, ::-1]), np.log2(7501 / 2501)),
        ("rmse_of_log_fold_changes", (-A, A), np.nan),
        ("rmse_of_log_fold_changes", (0 * A, A), np.nan),
        ("discrimination", (CHANGE, CHANGE, CHANGE + RNG.normal(size=(4, 30))), 1),
        ("discrimination", (CHANGE, CHANGE + 2, [CHANGE + 1, CHANGE + 3, CHANGE]), 1 / 3),
        ("discrimination", (CHANGE, CHANGE, []), np.nan),
        # Fewer cells than features, and one feature.
        ("frechet_distance", (A[:5], A[:5] + 2), 4 * 30),
        ("frechet_distance", (PAIR, 3 * PAIR), 12),
    ],
)
def test_known_answers(name, arguments, expected):
    assert getattr(metrics, name)(*arguments) == pytest.approx(expected, nan_ok=True)


def matrix_root(a, b):
    a_cov, b_cov = np.cov(a.T), np.cov(b.T)
    traces = np.trace(a_cov + b_cov - 2 * linalg.sqrtm(a_cov @ b_cov).real)
    return np.square(a.mean(0) - b.mean(0)).sum() + traces


def five_kernels(a, b):
    median = np.median(np.square(b[:, None] - b[None]).sum(-1)[np.triu_indices(40, 1)])
    gammas = [1 / (median * factor) for factor in (0.25, 0.5, 1, 2, 4)]
    aa, bb, ab = (
        np.mean([rbf_kernel(*pair, gamma) for gamma in gammas])
        for pair in ((a, a), (b, b), (a, b))
    )
    return aa + bb - 2 * ab


@pytest.mark.parametrize(
    ("distance", "expected", "n_features", "power"),
    [
        (metrics.energy_distance, lambda a, b: stats.energy_distance(a.T[0], b.T[0]) ** 2, 1, 1),
        (metrics.frechet_distance, matrix_root, 4, 2),
        (metrics.maximum_mean_discrepancy, five_kernels, 30, 0),
    ],
)
def test_distances(distance, expected, n_features, power):
    a, b = A[:, :n_features], B[:, :n_features]
    assert distance(a, b) == pytest.approx(expected(a, b))
    assert distance(A, A) == pytest.approx(0, abs=1e-9)
    assert distance(A, B + 1) > distance(A, B) > 0
    assert distance(10 * A, 10 * B) == pytest.approx(10**power * distance(A, B))


def test_coverage_is_the_level_if_the_distributions_agree():
    a, b = RNG.normal(size=(4000, 2)), RNG.normal(size=(3000, 2))
    assert metrics.coverage(a, b) == pytest.approx(0.9, abs=0.02)
    assert metrics.coverage(a, b, level=0.5) == pytest.approx(0.5, abs=0.03)
    assert metrics.coverage(0.5 * a, b) < 0.65 < 0.99 < metrics.coverage(2 * a, b)


@pytest.mark.parametrize("one_count", [0.0, np.log(2)])
def test_t_is_welch_s_with_a_moderated_variance(one_count):
    """As it is defined, gene by gene."""
    control, treated = np.log1p(RNG.poisson(0.4, (50, 20))), RNG.normal(2, 1, (60, 20))
    prior = np.concatenate([control.var(0, ddof=1), treated.var(0, ddof=1)]).mean()
    expected = []
    for x, y in zip(control.T, treated.T, strict=True):
        error = 0
        for values in (x, y):
            n, mean = len(values), values.mean()
            variance = max(values.var(ddof=1), mean * (one_count - mean))
            error += (10 * prior + (n - 1) * variance) / (n + 9) / n
        expected.append((y.mean() - x.mean()) / np.sqrt(error))
    t = metrics.welch_t(control, treated, one_count=one_count)
    np.testing.assert_allclose(t, expected)
    np.testing.assert_allclose(metrics.welch_t(treated, control, one_count=one_count), -t)
    # Of many cells with a variance of their own, it is Welch's.
    many = [np.tile(group, (500, 1)) for group in (control, treated)]
    welch = stats.ttest_ind(many[1], many[0], equal_var=False).statistic
    np.testing.assert_allclose(metrics.welch_t(*many), welch, rtol=1e-2)


def test_t_of_genes_without_variance_grows_with_the_change():
    silent = np.zeros((300, 1))
    small, large, huge = (metrics.welch_t(silent, silent + by)[0] for by in (5e-4, 3, 30))
    assert 0 < small < 1 < 100 < large < huge < 1e6
    assert metrics.welch_t(silent, silent)[0] == 0
    assert metrics.welch_t(silent + 0.1, silent + (0.3 - 0.2))[0] == 0


def test_silent_genes_are_no_changed_genes():
    """Adding the change of other cells to counts moves each gene, also those without counts."""
    rates = np.concatenate([RNG.gamma(1.0, 0.5, 100), np.zeros(900)])
    control, treated = (np.log1p(RNG.poisson(r, (3000, 1000))) for r in (rates, 1.3 * rates))
    shifted = control + 0.3 * rates + 0.01 * RNG.random(1000)
    ranked = metrics.rank_changed_genes(control, shifted)
    assert np.mean(ranked[:100] < 100) < 0.6
    t = [metrics.welch_t(control, group, one_count=np.log(2)) for group in (shifted, treated)]
    assert metrics.de_overlap(*t, 80) > 0.8
    assert metrics.rank_changed_genes(control, treated)[:80].max() < 100


def test_changed_genes_are_ranked_first():
    control, treated = RNG.normal(size=(50, 20)), RNG.normal(size=(60, 20))
    treated[:, [4, 9]] += [5, -3]
    t = metrics.welch_t(control, treated)
    assert t[4] > 10 > -10 > t[9]
    ranked = metrics.rank_changed_genes(control, treated)
    assert list(ranked[:2]) == [4, 9]
    assert sorted(ranked) == list(range(20))


def significant(control, treated, **kwargs):
    groups = control, treated
    return metrics.significant_genes(
        metrics.welch_t(*groups, **kwargs), metrics.welch_degrees_of_freedom(*groups, **kwargs)
    )


def test_false_discoveries_have_the_stated_rate():
    n_false, n_found = 0, 0
    for _ in range(20):
        control, treated = RNG.normal(size=(2, 40, 500))
        assert significant(control, treated).mean() < 0.02
        treated[:, :100] += 1.0
        found = significant(control, treated)
        n_false, n_found = n_false + found[100:].sum(), n_found + found.sum()
    assert 0.02 < n_false / n_found < 0.06
    assert n_found > 0.9 * 20 * 100


@pytest.mark.parametrize(("n_cells", "at_most"), [(10, 0.17), (20, 0.11), (50, 0.07), (300, 0.05)])
def test_false_discoveries_among_counts(n_cells, at_most):
    """Of a small group, compared with a large one: more than the nominal rate, but not by far."""
    rng = np.random.default_rng(0)
    n_false, n_found = 0, 0
    for _ in range(30):
        rates = 0.8 * rng.gamma(0.3, 1.0, 500)
        changed = rates * np.where(np.arange(500) < 50, 3, 1)
        control, treated = (
            np.log1p(rng.poisson(rng.gamma(2, mean / 2, (n, 500))))
            for mean, n in ((rates, 300), (changed, n_cells))
        )
        found = significant(control, treated, one_count=np.log(2))
        n_false, n_found = n_false + found[50:].sum(), n_found + found.sum()
    assert n_false / n_found < at_most


def test_degrees_of_freedom():
    control, treated = RNG.normal(size=(300, 40)), 3 * RNG.normal(size=(20, 40))
    of_test = metrics.welch_degrees_of_freedom(control, treated)
    np.testing.assert_array_equal(metrics.welch_degrees_of_freedom(treated, control), of_test)
    # Nearly all of the error is of the small group, which the prior's cells are added to.
    assert ((of_test > 20 - 1 + 10) & (of_test < 1.2 * 29)).all()
    same = metrics.welch_degrees_of_freedom(control, control)
    np.testing.assert_allclose(same, 2 * (300 - 1 + 10))
    # Of many cells with a variance of their own, they are Welch's.
    many = [np.tile(group, (500, 1)) for group in (control, treated)]
    welch = stats.ttest_ind(*many, equal_var=False).df
    np.testing.assert_allclose(metrics.welch_degrees_of_freedom(*many), welch, rtol=1e-2)


@pytest.mark.parametrize(
    "name",
    [
        "coverage", "energy_distance", "frechet_distance", "maximum_mean_discrepancy",
        "r2_of_means", "r2_of_variances", "rank_changed_genes", "rmse_of_means", "welch_t",
        "welch_degrees_of_freedom",
        "rmse_of_log_fold_changes", "wasserstein_distance",
        "pearson_of_change", "de_rank_correlation",
    ],
)  # fmt: skip
def test_groups_of_different_genes_are_an_error(name):
    groups = {"pearson_of_change": (A, B[:, :9], B), "de_rank_correlation": (A[0], B[0, :9])}
    with pytest.raises(ValueError):
        getattr(metrics, name)(*groups.get(name, (A, B[:, :9])))


@pytest.mark.parametrize(
    ("library_key", "library"), [("total", np.full(10, 100.0)), (None, np.arange(10))]
)
def test_counts_are_scaled_to_the_target_sum(library_key, library):
    counts = RNG.multinomial(np.arange(10), np.full(4, 0.25)).astype(np.float32)
    adata = AnnData(counts, obs={"total": np.full(10, 100.0)})
    assert metrics.median_library_size(adata, library_key=library_key) == np.median(library)
    scaled = metrics.log_normalized(adata, target_sum=50.0, library_key=library_key)
    # The cell without counts stays without.
    expected = np.log1p(counts / library.clip(1)[:, None] * 50)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


@pytest.mark.parametrize(("stated", "factor"), [({}, 1), ({"target_sum": 100 / 3}, 1.5)])
def test_log_normalised_values_are_scaled_if_their_target_sum_is_stated(stated, factor):
    values = AnnData(np.log1p(A), uns={"log1p": stated})
    assert metrics.median_library_size(values) == stated.get("target_sum")
    scaled = metrics.log_normalized(values, target_sum=50.0)
    np.testing.assert_allclose(scaled, np.log1p(factor * A), rtol=1e-6)
