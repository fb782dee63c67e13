import numpy as np
import pytest
from scipy import stats

from trvae.counterfactual._residual import (
    count_quantile,
    draw_counts,
    draw_values,
    expected_counts,
    expected_grey,
    expected_values,
)

RNG = np.random.default_rng(0)
N = 40_000


def test_equal_rates_change_nothing():
    counts = RNG.poisson(2.0, (20, 30)).astype(float)
    rate, uniform = RNG.gamma(1.0, 1.0, counts.shape), RNG.random(counts.shape)
    np.testing.assert_array_equal(expected_counts(counts, rate, rate), counts)
    np.testing.assert_array_equal(draw_counts(counts, rate, rate, 5.0, uniform), counts)


@pytest.mark.parametrize(
    ("source", "target", "theta", "mean", "variance"),
    [
        # Binomial thinning of 10 counts.
        (4.0, 1.0, None, 10 / 4, 10 * 0.25 * 0.75),
        (2.0, 0.0, None, 0.0, 0.0),
        # Negative binomial or Poisson gains.
        (1.0, 3.0, 0.5, 10 + 2.0, 2.0 + 2.0**2 / 0.5),
        (1.0, 3.0, None, 10 + 2.0, 2.0),
        (0.0, 3.0, None, 10 + 3.0, 3.0),
    ],
)
def test_draws_are_thinned_or_gain_with_the_right_moments(source, target, theta, mean, variance):
    ten, source, target = (np.full((N, 1), x) for x in (10.0, source, target))
    theta = None if theta is None else np.full((1, 1), theta)
    drawn = draw_counts(ten, source, target, theta, RNG.random((N, 1)))
    assert (np.where(target < source, 10 - drawn, drawn - 10) >= 0).all()
    np.testing.assert_allclose(expected_counts(ten, source, target), mean)
    np.testing.assert_allclose(drawn.mean(), mean, rtol=0.02)
    np.testing.assert_allclose(drawn.var(), variance, rtol=0.08)


@pytest.mark.parametrize("theta", [None, 0.3, 20.0])
def test_quantile_inverts_the_distribution(theta):
    mean = np.repeat([0.01, 1.0, 80.0], 1000)
    uniform = RNG.random(mean.shape)
    value = count_quantile(uniform, mean, None if theta is None else np.full(mean.shape, theta))
    law = stats.poisson(mean) if theta is None else stats.nbinom(theta, theta / (theta + mean))
    assert (law.cdf(value) >= uniform - 1e-9).all()
    assert (law.cdf(value - 1) <= uniform + 1e-9).all()


def test_values_of_equal_spread_are_shifted():
    values, before, after = np.array([[1.0, 0.2]]), np.array([[2.0, 1.5]]), np.array([[2.5, 0.5]])
    for spread in (0.3, np.array([[0.3, 2.0]])):
        arguments = (values, before, after, spread, spread)
        for nonnegative, expected in ((False, [[1.5, -0.8]]), (True, [[1.5, 0.0]])):
            uniform = RNG.random((1, 2))
            np.testing.assert_allclose(expected_values(*arguments, nonnegative), expected)
            np.testing.assert_allclose(draw_values(*arguments, uniform, nonnegative), expected)


@pytest.mark.parametrize("sds", [(0.5, 1.5), (1.5, 0.5), (1.0, 1.0)])
def test_values_are_moved_from_one_normal_distribution_to_the_other(sds):
    n = 100_000
    values = 2.0 + sds[0] * RNG.standard_normal((n, 1))
    arguments = (values, np.full((n, 1), 2.0), np.full((n, 1), 0.5), *sds)
    drawn = draw_values(*arguments, RNG.random((n, 1)))
    np.testing.assert_allclose(drawn.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(drawn.std(), sds[1], rtol=0.02)
    # They remain these very cells, as far as the spread allows.
    correlation = np.corrcoef(values.ravel(), drawn.ravel())[0, 1]
    np.testing.assert_allclose(correlation, min(1, sds[0] / sds[1]), atol=0.01)
    for nonnegative in (False, True):
        drawn = draw_values(*arguments, RNG.random((n, 1)), nonnegative)
        expected = expected_values(*arguments, nonnegative)
        np.testing.assert_allclose(drawn.mean(), expected.mean(), atol=0.02)
    assert (drawn >= 0).all()


def test_grey_values_change_as_little_as_possible():
    grey, source, target = RNG.random((3, 50, 8))
    np.testing.assert_allclose(expected_grey(grey, source, source), grey)
    changed = expected_grey(grey, source, target)
    assert ((changed - grey) * (target - source) >= -1e-12).all()
    assert ((changed >= 0) & (changed <= 1)).all()
    # Black and white are interchangeable.
    np.testing.assert_allclose(1 - expected_grey(1 - grey, 1 - source, 1 - target), changed)
    # If pixels are white as often as decoded, they are then as often as under the target.
    black, white = (expected_grey(np.full_like(grey, x), source, target) for x in (0.0, 1.0))
    np.testing.assert_allclose((1 - source) * black + source * white, target)
    # A certain target leaves no trace of the source.
    certain = np.broadcast_to([0.0, 1.0], (50, 2))
    np.testing.assert_array_equal(expected_grey(grey[:, :2], 1 - certain, certain), certain)


def test_order_in_memory_does_not_matter():
    counts = RNG.poisson(2.0, (20, 30))
    source, target = RNG.gamma(2.0, 1.0, (2, 20, 30))
    uniform, theta = RNG.random((20, 30)), RNG.gamma(2.0, 1.0, (1, 30))

    def draws(order):
        x, r0, r1, u = (np.array(a, order=order) for a in (counts, source, target, uniform))
        return draw_counts(x, r0, r1, theta, u), draw_values(r0, r0, r1, theta, 2 * theta, u)

    for plain, other in zip(draws("C"), draws("F"), strict=True):
        np.testing.assert_allclose(plain, other)
