import numpy as np
import pytest
from scipy import stats

from trvae._counterfactual import count_quantile, draw_counts, expected_counts, shift_values

RNG = np.random.default_rng(0)


def test_equal_rates_change_nothing():
    counts = RNG.poisson(2.0, (20, 30)).astype(float)
    rate = RNG.gamma(1.0, 1.0, counts.shape)
    uniform = RNG.random(counts.shape)
    np.testing.assert_array_equal(expected_counts(counts, rate, rate), counts)
    np.testing.assert_array_equal(draw_counts(counts, rate, rate, 5.0, uniform), counts)


def test_draws_have_the_expected_mean():
    n = 40_000
    counts = RNG.poisson(3.0, (n, 2)).astype(float)
    source = np.tile([3.0, 1.0], (n, 1))
    target = np.tile([1.0, 2.5], (n, 1))
    drawn = draw_counts(counts, source, target, np.array([[4.0, 4.0]]), RNG.random((n, 2)))
    expected = expected_counts(counts, source, target).mean(0)
    np.testing.assert_allclose(expected, [3 * 1 / 3, 3 + 1.5], rtol=0.02)
    np.testing.assert_allclose(drawn.mean(0), expected, rtol=0.02)


def test_falling_genes_are_thinned_binomially():
    n = 40_000
    ten = np.full((n, 1), 10.0)
    drawn = draw_counts(
        ten, np.full_like(ten, 4.0), np.full_like(ten, 1.0), None, RNG.random((n, 1))
    )
    assert drawn.max() <= 10
    np.testing.assert_allclose(drawn.var(), 10 * 0.25 * 0.75, rtol=0.03)


def test_rising_genes_keep_their_counts_and_receive_negative_binomial_ones():
    n = 40_000
    counts = RNG.poisson(3.0, (n, 1)).astype(float)
    source, target = np.full_like(counts, 1.0), np.full_like(counts, 3.0)
    gained = draw_counts(counts, source, target, np.full((1, 1), 0.5), RNG.random((n, 1))) - counts
    assert gained.min() >= 0
    np.testing.assert_allclose(gained.mean(), 2.0, rtol=0.03)
    np.testing.assert_allclose(gained.var(), 2.0 + 2.0**2 / 0.5, rtol=0.08)


@pytest.mark.parametrize("theta", [None, 0.3, 20.0])
def test_quantile_inverts_the_distribution(theta):
    mean = np.repeat([0.01, 1.0, 80.0], 1000)
    uniform = RNG.random(mean.shape)
    value = count_quantile(uniform, mean, None if theta is None else np.full(mean.shape, theta))
    if theta is None:
        law = stats.poisson(mean)
    else:
        law = stats.nbinom(theta, theta / (theta + mean))
    assert (law.cdf(value) >= uniform - 1e-9).all()
    assert (law.cdf(value - 1) <= uniform + 1e-9).all()


def test_nothing_comes_of_a_gene_without_rate():
    counts = np.array([[0.0, 4.0]])
    zero, some = np.zeros((1, 2)), np.full((1, 2), 2.0)
    drawn = draw_counts(counts, some, zero, None, np.full((1, 2), 0.99))
    np.testing.assert_array_equal(drawn, [[0.0, 0.0]])
    assert np.isfinite(expected_counts(counts, zero, some)).all()


def test_shift_adds_the_difference_and_respects_the_bound():
    values, before, after = np.array([[0.5, 0.0]]), np.array([[1.0, 1.0]]), np.array([[2.0, 0.2]])
    np.testing.assert_allclose(shift_values(values, before, after), [[1.5, -0.8]])
    np.testing.assert_allclose(shift_values(values, before, after, nonnegative=True), [[1.5, 0.0]])
