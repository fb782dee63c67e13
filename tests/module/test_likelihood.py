import itertools

import mpmath
import numpy as np
import pytest
import torch
from helpers import DEVICE
from scipy import stats
from scvi import distributions

from trvae.module._likelihood import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)

pytestmark = pytest.mark.usefixtures("tensors_on_device")

# Of log_mu, log_theta and logits of zero inflation: our distribution and scvi-tools'.
LIKELIHOODS = {
    "nb": (
        lambda log_mu, log_theta, _: NegativeBinomial(log_mu, log_theta.exp(), log_mu),
        lambda log_mu, log_theta, _: distributions.NegativeBinomial(
            mu=log_mu.exp(), theta=log_theta.exp()
        ),
    ),
    "zinb": (
        lambda log_mu, log_theta, logits: ZeroInflatedNegativeBinomial(
            log_mu, log_theta.exp(), log_mu, logits
        ),
        lambda log_mu, log_theta, logits: distributions.ZeroInflatedNegativeBinomial(
            mu=log_mu.exp(), theta=log_theta.exp(), zi_logits=logits
        ),
    ),
    "poisson": (
        lambda log_mu, *_: Poisson(log_mu, log_mu),
        lambda log_mu, *_: distributions.Poisson(rate=log_mu.exp()),
    ),
}


def parameters(shape=(30, 40), theta_shape=(1, 40), dtype=torch.float64):
    """Counts, and leaves: log_mu, log_theta, logits of zero inflation."""
    g = torch.Generator(DEVICE).manual_seed(0)
    log_mu = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    log_theta = torch.randn(theta_shape, generator=g, dtype=torch.float64)
    counts = torch.poisson(log_mu.exp() * torch.rand(shape, generator=g, dtype=torch.float64))
    logits = torch.linspace(-3, 3, log_mu.numel(), dtype=dtype).reshape(shape)
    leaves = [leaf.to(dtype).requires_grad_() for leaf in (log_mu, log_theta, logits)]
    return counts.to(dtype), leaves


def gradients(log_prob, leaves):
    return torch.autograd.grad(
        log_prob.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )


# In single precision, terms of some hundreds that nearly cancel are rounded.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("theta_shape", [(1, 40), (30, 40)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_agrees_with_scvi_tools_gradients_included(name, theta_shape, dtype, tolerance):
    counts, leaves = parameters(theta_shape=theta_shape, dtype=dtype)
    ours, theirs = (make(*leaves) for make in LIKELIHOODS[name])
    close = {"rtol": 10 * tolerance, "atol": tolerance}
    log_probs = [distribution.log_prob(counts) for distribution in (ours, theirs)]
    torch.testing.assert_close(*log_probs, **close)
    torch.testing.assert_close(*(gradients(p, leaves) for p in log_probs), **close)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.get_normalized("scale"), leaves[0].exp())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_several_draws_of_rates_and_any_order_in_memory(name):
    counts, (log_mu, log_theta, logits) = parameters()
    make = LIKELIHOODS[name][0]
    several = make(torch.stack([log_mu, log_mu + 1]), log_theta, torch.stack([logits, logits]))
    together = several.log_prob(counts.t().contiguous().t())
    for draw, shift in enumerate([0, 1]):
        alone = make(log_mu + shift, log_theta, logits).log_prob(counts)
        torch.testing.assert_close(together[draw], alone)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradient_is_numerically_right(name):
    counts, leaves = parameters((3, 5), (1, 5))
    assert torch.autograd.gradcheck(lambda *p: LIKELIHOODS[name][0](*p).log_prob(counts), leaves)


@pytest.mark.parametrize(
    ("value_shape", "loc_shape", "scale_shape"),
    [((5, 4), (5, 4), (1, 4)), ((5, 4), (3, 5, 4), (5, 4)), ((3, 5, 4), (5, 4), (5, 4))],
)
@pytest.mark.parametrize("is_log_known", [True, False])
def test_normal_agrees_with_torch_gradients_included(
    value_shape, loc_shape, scale_shape, is_log_known
):
    g = torch.Generator(DEVICE).manual_seed(0)
    leaves = [
        torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in (value_shape, loc_shape, scale_shape)
    ]
    value, loc, log_scale = leaves
    ours = Normal(loc, log_scale.exp(), log_scale if is_log_known else None)
    theirs = torch.distributions.Normal(loc, log_scale.exp())
    log_probs = [distribution.log_prob(value) for distribution in (ours, theirs)]
    torch.testing.assert_close(*log_probs)
    torch.testing.assert_close(*(gradients(p, leaves) for p in log_probs))


def test_negative_binomial_of_little_dispersion_is_nearly_a_poisson():
    _, (log_mu, *_) = parameters(dtype=torch.float32)
    zero = torch.zeros_like(log_mu)
    value = NegativeBinomial(log_mu, torch.full((1, 40), 1e7), log_mu).log_prob(zero)
    expected = Poisson(log_mu, log_mu).log_prob(zero)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------- extreme numbers

COUNTS = [0.0, 1.0, 2.0, 30.0, 1e3, 1e6]
MEANS = [1e-26, 1e-6, 1e-3, 0.1, 1.0, 30.0, 1e3, 1e6]
THETAS = [1e-3, 0.1, 1.0, 30.0, 1e3, 1e6]


def extremes(dtype=torch.float64):
    """Counts, log_mu and log_theta: all combinations, one per row."""
    grid = torch.tensor(list(itertools.product(COUNTS, MEANS, THETAS)), dtype=torch.float64)
    counts, mean, theta = grid.to(dtype).T[..., None]
    return counts, mean.log(), theta.log()


def exact(counts, log_mu, log_theta):
    """Log-probabilities of the negative binomial, with 60 digits."""
    with mpmath.workdps(60):
        return [
            mpmath.loggamma(x + t)
            - mpmath.loggamma(t)
            - mpmath.loggamma(x + 1)
            + t * mpmath.log(t / (t + mu))
            + x * mpmath.log(mu / (t + mu))
            for x, mu, t in (
                map(mpmath.mpf, row)
                for row in torch.cat([counts, log_mu.exp(), log_theta.exp()], 1).tolist()
            )
        ]


def test_negative_binomial_is_exact_at_extremes():
    counts, log_mu, log_theta = extremes()
    theta, mu = log_theta.exp(), log_mu.exp()
    value = NegativeBinomial(log_mu, theta, log_mu).log_prob(counts)
    expected = [float(p) for p in exact(counts, log_mu, log_theta)]
    np.testing.assert_allclose(value.squeeze(1).cpu(), expected, rtol=1e-6)
    # SciPy takes the probability of success, which is 1 for a much smaller mean.
    value, counts, theta, mu = (tensor.cpu() for tensor in (value, counts, theta, mu))
    known = mu > 1e-8 * theta
    expected = stats.nbinom.logpmf(counts[known], theta[known], (theta / (theta + mu))[known])
    np.testing.assert_allclose(value[known], expected, rtol=1e-6)


@pytest.mark.parametrize("logit", [-30.0, -3.0, 0.0, 3.0, 30.0])
def test_zero_inflated_negative_binomial_is_exact_at_extremes(logit):
    counts, log_mu, log_theta = extremes()
    logits = torch.full_like(log_mu, logit)
    value = ZeroInflatedNegativeBinomial(log_mu, log_theta.exp(), log_mu, logits).log_prob(counts)
    with mpmath.workdps(60):
        inflated = 1 / (1 + mpmath.exp(-mpmath.mpf(logit)))
        expected = [
            float(mpmath.log((1 - inflated) * mpmath.exp(p) + (inflated if x == 0 else 0)))
            for x, p in zip(counts, exact(counts, log_mu, log_theta), strict=True)
        ]
    np.testing.assert_allclose(value.squeeze(1).cpu(), expected, rtol=1e-6, atol=1e-15)


def test_single_precision_is_as_exact_as_it_can_be_at_extremes():
    counts, log_mu, log_theta = extremes(torch.float32)
    value = NegativeBinomial(log_mu, log_theta.exp(), log_mu).log_prob(counts).double()
    x, log_mu, theta = counts.double(), log_mu.double(), log_theta.exp().double()
    mu = log_mu.exp()
    expected = NegativeBinomial(log_mu, theta, log_mu).log_prob(x)
    # The sum of the terms, each of which is rounded, and the effect of rounding the mean.
    terms = (
        theta * (mu / theta).log1p()
        + x * (log_mu.abs() + (mu + theta).log().abs())
        + sum(torch.lgamma(y).abs() for y in (x + theta, theta, x + 1))
        + (x - mu).abs() * theta / (mu + theta) * (1 + log_mu.abs())
    )
    # CUDA's lgamma may be wrong by 6 units in the last place.
    n_units = 4 if DEVICE == "cpu" else 8
    assert ((value - expected).abs() <= n_units * torch.finfo(torch.float32).eps * terms).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_extremes(name, dtype):
    counts, *leaves = extremes(dtype)
    leaves.append(torch.linspace(-30, 30, len(counts), dtype=dtype)[:, None])
    leaves = [leaf.requires_grad_() for leaf in leaves]
    log_prob = LIKELIHOODS[name][0](*leaves).log_prob(counts)
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(grad).all() for grad in gradients(log_prob, leaves))
