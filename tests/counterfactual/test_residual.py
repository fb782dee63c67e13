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


def test_values_of_equal_spread_are_shifted():
    values, before, after = np.array([[1.0, 0.2]]), np.array([[2.0, 1.5]]), np.array([[2.5, 0.5]])
    for spread in (0.3, np.array([[0.3, 2.0]])):
        arguments = (values, before, after, spread, spread)
        np.testing.assert_allclose(expected_values(*arguments), [[1.5, -0.8]])
        np.testing.assert_allclose(expected_values(*arguments, True), [[1.5, 0.0]])
        uniform = RNG.random((1, 2))
        np.testing.assert_allclose(draw_values(*arguments, uniform), [[1.5, -0.8]])
        np.testing.assert_allclose(draw_values(*arguments, uniform, True), [[1.5, 0.0]])


@pytest.mark.parametrize("sds", [(0.5, 1.5), (1.5, 0.5), (1.0, 1.0)])
def test_values_are_moved_from_one_normal_distribution_to_the_other(sds):
    n = 100_000
    values = 2.0 + sds[0] * RNG.standard_normal((n, 1))
    arguments = (values, np.full((n, 1), 2.0), np.full((n, 1), 0.5), *sds)
    drawn = draw_values(*arguments, RNG.random((n, 1)))
    np.testing.assert_allclose(drawn.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(drawn.std(), sds[1], rtol=0.02)
    # They remain these very cells, as far as there is room for that.
    correlation = np.corrcoef(values.ravel(), drawn.ravel())[0, 1]
    np.testing.assert_allclose(correlation, min(1, sds[0] / sds[1]), atol=0.01)
    for nonnegative in (False, True):
        drawn = draw_values(*arguments, RNG.random((n, 1)), nonnegative)
        expected = expected_values(*arguments, nonnegative)
        np.testing.assert_allclose(drawn.mean(), expected.mean(), atol=0.02)
    assert (drawn >= 0).all()


def test_grey_values_change_as_little_as_can_be():
    rng = np.random.default_rng(0)
    grey, source, target = rng.random((3, 50, 8))
    np.testing.assert_allclose(expected_grey(grey, source, source), grey)
    changed = expected_grey(grey, source, target)
    assert ((changed - grey) * (target - source) >= -1e-12).all()
    assert (changed >= 0).all()
    assert (changed <= 1).all()
    # Black and white are alike.
    np.testing.assert_allclose(1 - expected_grey(1 - grey, 1 - source, 1 - target), changed)
    # Pixels that are as often white as decoded are then so as often as the target's.
    black, white = np.zeros_like(grey), np.ones_like(grey)
    after = [expected_grey(pixels, source, target) for pixels in (black, white)]
    np.testing.assert_allclose((1 - source) * after[0] + source * after[1], target)
    # What is decoded for sure leaves no trace.
    sure = np.broadcast_to([0.0, 1.0], (50, 2))
    np.testing.assert_array_equal(expected_grey(grey[:, :2], 1 - sure, sure), sure)


def test_order_in_memory_does_not_matter():
    shape = (20, 30)
    counts = RNG.poisson(2.0, shape)
    source, target = RNG.gamma(2.0, 1.0, (2, *shape))
    uniform = RNG.random(shape)
    theta = RNG.gamma(2.0, 1.0, (1, 30))
    plain = [
        draw_counts(counts, source, target, theta, uniform),
        draw_values(source, source, target, np.ones((1, 30)), np.full((1, 30), 2.0), uniform),
    ]
    counts, source, target, uniform = map(np.asfortranarray, (counts, source, target, uniform))
    other = [
        draw_counts(counts, source, target, theta, uniform),
        draw_values(source, source, target, np.ones((1, 30)), np.full((1, 30), 2.0), uniform),
    ]
    np.testing.assert_array_equal(plain[0], other[0])
    np.testing.assert_allclose(plain[1], other[1])
