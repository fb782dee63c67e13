import pytest
import torch
from scipy import stats
from scvi import distributions

from trvae._likelihood import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta_shape", [(1, 40), (30, 40)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_agrees_with_scvi_tools_gradients_included(name, theta_shape, dtype):
    counts, log_mu, log_theta = parameters(theta_shape, dtype)
    logits = zero_inflation(log_mu)
    leaves = [tensor.requires_grad_() for tensor in (log_mu, log_theta, logits)]
    ours, theirs = (make(log_mu, log_theta.exp(), logits) for make in LIKELIHOODS[name])
    log_probs = [distribution.log_prob(counts) for distribution in (ours, theirs)]
    torch.testing.assert_close(*log_probs, rtol=1e-4, atol=1e-5)
    for leaf in leaves:
        grads = [
            torch.autograd.grad(p.sum(), leaf, retain_graph=True, allow_unused=True)[0]
            for p in log_probs
        ]
        assert (grads[0] is None) == (grads[1] is None)
        if grads[0] is not None:
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
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
