import itertools

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scvi import distributions

from trvae.module._likelihood import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)


def parameters(theta_shape, dtype):
    g = torch.Generator().manual_seed(0)
    log_mu = 2 * torch.randn(30, 40, generator=g, dtype=torch.float64)
    log_theta = torch.randn(theta_shape, generator=g, dtype=torch.float64)
    counts = torch.poisson(log_mu.exp() * torch.rand(30, 40, generator=g, dtype=torch.float64))
    return counts.to(dtype), log_mu.to(dtype), log_theta.to(dtype)


@pytest.mark.parametrize("theta_shape", [(1, 40), (30, 40)])
def test_agrees_with_scipy(theta_shape):
    counts, log_mu, log_theta = parameters(theta_shape, torch.float64)
    value = NegativeBinomial(log_mu, log_theta.exp(), log_mu).log_prob(counts)
    theta, mu = log_theta.exp().numpy(), log_mu.exp().numpy()
    expected = stats.nbinom.logpmf(counts.numpy(), theta, theta / (theta + mu))
    torch.testing.assert_close(value, torch.as_tensor(expected), rtol=1e-6, atol=1e-8)


LIKELIHOODS = {
    "nb": (
        lambda log_mu, theta, _: NegativeBinomial(log_mu, theta, log_mu),
        lambda log_mu, theta, _: distributions.NegativeBinomial(mu=log_mu.exp(), theta=theta),
    ),
    "zinb": (
        lambda log_mu, theta, logits: ZeroInflatedNegativeBinomial(log_mu, theta, log_mu, logits),
        lambda log_mu, theta, logits: distributions.ZeroInflatedNegativeBinomial(
            mu=log_mu.exp(), theta=theta, zi_logits=logits
        ),
    ),
    "poisson": (
        lambda log_mu, *_: Poisson(log_mu, log_mu),
        lambda log_mu, *_: distributions.Poisson(rate=log_mu.exp()),
    ),
}


def zero_inflation(log_mu):
    return torch.linspace(-3, 3, log_mu.numel(), dtype=log_mu.dtype).reshape(log_mu.shape)


# In single precision, terms of some hundreds are rounded that nearly cancel.
AGREEMENT = [
    (torch.float64, {"rtol": 1e-5, "atol": 1e-8}, {"rtol": 1e-5, "atol": 1e-8}),
    (torch.float32, {"rtol": 1e-4, "atol": 1e-5}, {"rtol": 1e-4, "atol": 1e-4}),
]


@pytest.mark.parametrize(("dtype", "of_values", "of_gradients"), AGREEMENT)
@pytest.mark.parametrize("theta_shape", [(1, 40), (30, 40)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_agrees_with_scvi_tools_gradients_included(
    name, theta_shape, dtype, of_values, of_gradients
):
    counts, log_mu, log_theta = parameters(theta_shape, dtype)
    logits = zero_inflation(log_mu)
    leaves = [tensor.requires_grad_() for tensor in (log_mu, log_theta, logits)]
    ours, theirs = (make(log_mu, log_theta.exp(), logits) for make in LIKELIHOODS[name])
    log_probs = [distribution.log_prob(counts) for distribution in (ours, theirs)]
    torch.testing.assert_close(*log_probs, **of_values)
    for leaf in leaves:
        grads = [
            torch.autograd.grad(p.sum(), leaf, retain_graph=True, allow_unused=True)[0]
            for p in log_probs
        ]
        assert (grads[0] is None) == (grads[1] is None)
        if grads[0] is not None:
            torch.testing.assert_close(*grads, **of_gradients)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.scale, log_mu.exp())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_known_positions_change_nothing(name):
    counts, log_mu, log_theta = parameters((1, 40), torch.float64)
    nonzero = counts.reshape(-1).nonzero().squeeze(1)
    distribution = LIKELIHOODS[name][0](log_mu, log_theta.exp(), zero_inflation(log_mu))
    expected = distribution.log_prob(counts)
    torch.testing.assert_close(distribution.log_prob(counts, nonzero), expected)
    # They are those of one draw of the rates, not of several.
    several = torch.stack([log_mu, log_mu + 1])
    distribution = LIKELIHOODS[name][0](several, log_theta.exp(), zero_inflation(several))
    expected = distribution.log_prob(counts)
    torch.testing.assert_close(distribution.log_prob(counts, nonzero), expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradient_is_numerically_right(name):
    counts, log_mu, log_theta = parameters((1, 40), torch.float64)
    counts, log_mu, log_theta = counts[:3, :5], log_mu[:3, :5], log_theta[:, :5]

    def log_prob(log_mu, log_theta, logits):
        return LIKELIHOODS[name][0](log_mu, log_theta.exp(), logits).log_prob(counts)

    leaves = (log_mu, log_theta, zero_inflation(log_mu))
    assert torch.autograd.gradcheck(log_prob, [leaf.clone().requires_grad_() for leaf in leaves])


@pytest.mark.parametrize(
    ("value_shape", "loc_shape", "scale_shape"),
    [((5, 4), (5, 4), (1, 4)), ((5, 4), (3, 5, 4), (5, 4)), ((3, 5, 4), (5, 4), (5, 4))],
)
def test_normal_agrees_with_torch_gradients_included(value_shape, loc_shape, scale_shape):
    g = torch.Generator().manual_seed(0)
    value, loc, log_scale = (
        torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in (value_shape, loc_shape, scale_shape)
    )
    weight = torch.randn(torch.broadcast_shapes(value_shape, loc_shape), generator=g)
    ours, theirs = (
        make(loc, log_scale.exp()).log_prob(value) for make in (Normal, torch.distributions.Normal)
    )
    torch.testing.assert_close(ours, theirs)
    leaves = (value, loc, log_scale)
    grads = [torch.autograd.grad((p * weight).sum(), leaves) for p in (ours, theirs)]
    torch.testing.assert_close(*grads)


def test_negative_binomial_of_little_dispersion_is_nearly_a_poisson():
    counts, log_mu, _ = parameters((1, 40), torch.float32)
    value = NegativeBinomial(log_mu, torch.full((1, 40), 1e7), log_mu).log_prob(counts)
    expected = Poisson(log_mu, log_mu).log_prob(counts)
    torch.testing.assert_close(value[counts == 0], expected[counts == 0], rtol=1e-5, atol=1e-5)


def test_is_finite_for_tiny_and_huge_means():
    log_mu = torch.tensor([[-60.0, -20.0, 0.0, 14.0]], requires_grad=True)
    counts = torch.tensor([[0.0, 3.0, 0.0, 1e6]])
    value = NegativeBinomial(log_mu, torch.ones(1, 4), log_mu).log_prob(counts)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(log_mu.grad).all()


# ------------------------------------------------------------------------- extreme numbers

THETAS = [1e-3, 0.1, 1.0, 30.0, 1e3, 1e6]
MEANS = [1e-6, 1e-3, 0.1, 1.0, 30.0, 1e3, 1e6]
COUNTS = [0.0, 1.0, 2.0, 30.0, 1e3, 1e6]
LOGITS = [-30.0, -3.0, 0.0, 3.0, 30.0]


def extremes(dtype=torch.float64):
    """Counts, logs of means and of theta: all combinations, one a row."""
    grid = torch.tensor(list(itertools.product(COUNTS, MEANS, THETAS)), dtype=torch.float64)
    counts, mean, theta = grid.to(dtype).T[..., None]
    return counts, mean.log(), theta


def exact_log_prob(counts, mean, theta):
    """Log-probability of the negative binomial, with 60 digits."""
    with mpmath.workdps(60):
        x, mu, t = (mpmath.mpf(float(number)) for number in (counts, mean, theta))
        return (
            mpmath.loggamma(x + t)
            - mpmath.loggamma(t)
            - mpmath.loggamma(x + 1)
            + t * mpmath.log(t / (t + mu))
            + x * mpmath.log(mu / (t + mu))
        )


def exact_log_probs(counts, log_mu, theta):
    grid = torch.cat([counts, log_mu.exp(), theta], 1)
    return [exact_log_prob(*row) for row in grid]


def test_negative_binomial_is_exact_at_extremes():
    counts, log_mu, theta = extremes()
    value = NegativeBinomial(log_mu, theta, log_mu).log_prob(counts)
    expected = [float(p) for p in exact_log_probs(counts, log_mu, theta)]
    np.testing.assert_allclose(value.squeeze(1), expected, rtol=1e-6)


def test_negative_binomial_agrees_with_scipy_at_extremes():
    counts, log_mu, theta = extremes()
    # SciPy takes the probability of success, which says little of a much smaller mean.
    known = (log_mu.exp() > 1e-8 * theta).squeeze(1)
    counts, log_mu, theta = counts[known], log_mu[known], theta[known]
    value = NegativeBinomial(log_mu, theta, log_mu).log_prob(counts)
    success = theta / (theta + log_mu.exp())
    expected = stats.nbinom.logpmf(counts.numpy(), theta.numpy(), success.numpy())
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("logit", LOGITS)
def test_zero_inflated_negative_binomial_is_exact_at_extremes(logit):
    counts, log_mu, theta = extremes()
    logits = torch.full_like(log_mu, logit)
    value = ZeroInflatedNegativeBinomial(log_mu, theta, log_mu, logits).log_prob(counts)
    expected = []
    with mpmath.workdps(60):
        inflated = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
        for count, log_prob in zip(counts, exact_log_probs(counts, log_mu, theta), strict=True):
            share = (1 - inflated) * mpmath.exp(log_prob) + (inflated if count == 0 else 0)
            expected.append(float(mpmath.log(share)))
    np.testing.assert_allclose(value.squeeze(1), expected, rtol=1e-6)


def test_single_precision_is_as_exact_as_it_can_be_at_extremes():
    counts, log_mu, theta = extremes(torch.float32)
    value = NegativeBinomial(log_mu, theta, log_mu).log_prob(counts).double()
    x, log_mu, theta = counts.double(), log_mu.double(), theta.double()
    mu = log_mu.exp()
    expected = NegativeBinomial(log_mu, theta, log_mu).log_prob(x)
    # The terms that are added up, each of them rounded, and what rounding of the mean makes.
    terms = (
        theta * (mu / theta).log1p()
        + x * (log_mu.abs() + (mu + theta).log().abs())
        + sum(torch.lgamma(y).abs() for y in (x + theta, theta, x + 1))
        + (x - mu).abs() * theta / (mu + theta) * (1 + log_mu.abs())
    )
    assert ((value - expected).abs() <= 4 * torch.finfo(torch.float32).eps * terms).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_extremes(name, dtype):
    counts, log_mu, theta = extremes(dtype)
    leaves = [log_mu, theta.log(), zero_inflation(log_mu) * 10]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    log_prob = LIKELIHOODS[name][0](leaves[0], leaves[1].exp(), leaves[2]).log_prob(counts)
    assert torch.isfinite(log_prob).all()
    grads = torch.autograd.grad(log_prob.sum(), leaves, allow_unused=True)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


def test_gradient_of_the_normal_is_numerically_right():
    g = torch.Generator().manual_seed(0)
    value, loc = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    log_scale = torch.randn(1, 5, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *leaves: Normal(leaves[1], leaves[2].exp()).log_prob(leaves[0]),
        [leaf.clone().requires_grad_() for leaf in (value, loc, log_scale)],
    )
