import numpy as np
import pytest
import torch
from scipy import stats

from trvae.counterfactual._draws import tail_probability
from trvae.counterfactual._residual import (
    draw_counts,
    draw_decoded_counts,
    draw_values,
    expected_counts,
    expected_grey,
    expected_values,
)

RNG = np.random.default_rng(0)
N = 40_000


def tensors(*arrays, dtype=torch.float64):
    return [None if a is None else torch.as_tensor(np.array(a), dtype=dtype) for a in arrays]


def tails(shape):
    return torch.from_numpy(RNG.integers(0, 2**31, shape).astype(np.int32))


def test_equal_rates_change_nothing():
    shape = (20, 30)
    counts, rate, theta = tensors(RNG.poisson(2.0, shape), RNG.gamma(1.0, 1.0, shape), [[5.0]])
    np.testing.assert_array_equal(expected_counts(counts, rate, rate), counts)
    np.testing.assert_array_equal(draw_counts(counts, rate, rate, theta, tails(shape)), counts)


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
    rates = (torch.full((N, 1), x, dtype=torch.float32) for x in (10.0, source, target))
    ten, before, after = rates
    theta = None if theta is None else torch.full((1, 1), theta)
    drawn = draw_counts(ten, before, after, theta, tails((N, 1)))
    assert drawn.dtype == torch.float32
    assert (((drawn - 10) if target >= source else (10 - drawn)) >= 0).all()
    np.testing.assert_allclose(expected_counts(ten, before, after), mean)
    np.testing.assert_allclose(drawn.mean(), mean, rtol=0.02)
    np.testing.assert_allclose(drawn.var(), variance, rtol=0.08)


def test_each_gene_has_its_own_dispersion():
    theta = torch.tensor([[0.2, 1.0, 50.0]])
    rate = torch.full((N, 3), 2.0)
    expected = 2 + 4 / theta[0].numpy()
    for draw in (
        draw_counts(torch.zeros(N, 3), rate, 2 * rate, theta, tails((N, 3))),
        draw_counts(torch.zeros(N, 3), rate, 2 * rate, theta.expand(N, 3), tails((N, 3))),
        draw_decoded_counts(rate, theta, None, tails((N, 3))),
    ):
        np.testing.assert_allclose(draw.double().var(0), expected, rtol=0.1)


@pytest.mark.parametrize("inverse_dispersion", [None, 0.7])
def test_draws_are_quantiles(inverse_dispersion):
    """A gene with more chances of being high is never lower: one number determines both draws."""
    shape = (200, 40)
    counts, source = torch.from_numpy(RNG.poisson(3.0, shape)).float(), torch.ones(shape)
    theta = None if inverse_dispersion is None else torch.full((1, 1), inverse_dispersion)
    uniform = tails(shape)
    u = 1 - tail_probability(uniform).numpy()
    drawn = draw_counts(counts, source, 0.5 * source, theta, uniform)
    np.testing.assert_array_equal(drawn, stats.binom.ppf(u, counts.numpy(), 0.5).clip(0))
    drawn = draw_counts(counts, source, 3.5 * source, theta, uniform)
    p = None if theta is None else inverse_dispersion / (inverse_dispersion + 2.5)
    gain = stats.poisson.ppf(u, 2.5) if p is None else stats.nbinom.ppf(u, inverse_dispersion, p)
    np.testing.assert_array_equal(drawn, counts.numpy() + gain)


def test_rare_gains_and_losses_occur_as_often_as_they_should():
    n = 3_000_000
    rare, counts = 1e-5, torch.full((n, 1), 3.0)
    rate = torch.ones(n, 1, dtype=torch.float64)
    gained = draw_counts(counts, rate, rate + rare, None, tails((n, 1))) - counts
    lost = counts - draw_counts(counts, rate, rate - rare, None, tails((n, 1)))
    for change, expected in ((gained, n * rare), (lost, 3 * n * rare)):
        assert change.max() <= 1
        assert abs(change.double().sum() - expected) < 4 * np.sqrt(expected)


def test_inflated_zeros_are_the_lowest_quantiles():
    share, mean = 0.25, torch.full((N, 1), 0.75 * 4.0)
    uniform = tails((N, 1))
    drawn = draw_decoded_counts(mean, None, torch.full((N, 1), share), uniform).numpy()
    u = 1 - tail_probability(uniform).numpy()
    expected = np.where(u > share, stats.poisson.ppf((u - share) / (1 - share), 4.0), 0)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_allclose(drawn.mean(), 3.0, rtol=0.02)


def test_values_of_equal_spread_are_shifted():
    values, before, after = np.array([[1.0, 0.2]]), np.array([[2.0, 1.5]]), np.array([[2.5, 0.5]])
    for spread in (np.array([[0.3]]), np.array([[0.3, 2.0]])):
        arguments = tensors(values, before, after, spread, spread)
        for nonnegative, expected in ((False, [[1.5, -0.8]]), (True, [[1.5, 0.0]])):
            uniform = tails((1, 2))
            np.testing.assert_allclose(expected_values(*arguments, nonnegative), expected)
            np.testing.assert_allclose(draw_values(*arguments, uniform, nonnegative), expected)


@pytest.mark.parametrize("sds", [(0.5, 1.5), (1.5, 0.5), (1.0, 1.0)])
def test_values_are_moved_from_one_normal_distribution_to_the_other(sds):
    n = 100_000
    values = 2.0 + sds[0] * RNG.standard_normal((n, 1))
    constants = (np.full((n, 1), x) for x in (2.0, 0.5, *sds))
    arguments = tensors(values, *constants, dtype=torch.float32)
    drawn = draw_values(*arguments, tails((n, 1)))
    np.testing.assert_allclose(drawn.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(drawn.std(), sds[1], rtol=0.02)
    # They remain these very cells, as far as the spread allows.
    correlation = np.corrcoef(values.ravel(), drawn.ravel().numpy())[0, 1]
    np.testing.assert_allclose(correlation, min(1, sds[0] / sds[1]), atol=0.01)
    for nonnegative in (False, True):
        drawn = draw_values(*arguments, tails((n, 1)), nonnegative)
        expected = expected_values(*arguments, nonnegative)
        np.testing.assert_allclose(drawn.mean(), expected.mean(), atol=0.02)
    assert (drawn >= 0).all()


def test_grey_values_change_as_little_as_possible():
    grey, source, target = tensors(*RNG.random((3, 50, 8)))
    np.testing.assert_allclose(expected_grey(grey, source, source), grey)
    changed = expected_grey(grey, source, target)
    assert ((changed - grey) * (target - source) >= -1e-12).all()
    assert ((changed >= 0) & (changed <= 1)).all()
    # Black and white are interchangeable.
    np.testing.assert_allclose(1 - expected_grey(1 - grey, 1 - source, 1 - target), changed)
    # If pixels are white as often as decoded, they are then as often as under the target.
    black, white = (expected_grey(torch.full_like(grey, x), source, target) for x in (0.0, 1.0))
    np.testing.assert_allclose((1 - source) * black + source * white, target)
    # A certain target leaves no trace of the source.
    (certain,) = tensors(np.broadcast_to([0.0, 1.0], (50, 2)))
    np.testing.assert_array_equal(expected_grey(grey[:, :2], 1 - certain, certain), certain)


def test_order_in_memory_does_not_matter():
    shape = (20, 30)
    counts, theta = tensors(RNG.poisson(2.0, shape), RNG.gamma(2.0, 1.0, (1, 30)))
    source, target = tensors(*RNG.gamma(2.0, 1.0, (2, *shape)))
    uniform = tails(shape)

    def draws(order):
        x, r0, r1, u = (order(a) for a in (counts, source, target, uniform))
        return (
            draw_counts(x, r0, r1, theta, u),
            draw_decoded_counts(r1, theta, r0 / 100, u),
            draw_values(r0, r0, r1, theta, 2 * theta, u),
        )

    in_columns = draws(lambda a: a.T.contiguous().T)
    for plain, other in zip(draws(torch.Tensor.contiguous), in_columns, strict=True):
        np.testing.assert_allclose(plain, other)
