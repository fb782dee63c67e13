import pytest
import torch
from scipy import stats
from scvi import distributions

from trvae._likelihood import NegativeBinomial


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta_shape", [(1, 40), (30, 40)])
def test_agrees_with_scvi_tools_gradients_included(theta_shape, dtype):
    counts, log_mu, log_theta = parameters(theta_shape, dtype)
    log_mu.requires_grad_()
    log_theta.requires_grad_()
    ours = NegativeBinomial(log_mu, log_theta.exp(), log_mu).log_prob(counts)
    theirs = distributions.NegativeBinomial(mu=log_mu.exp(), theta=log_theta.exp()).log_prob(
        counts
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for parameter in (log_mu, log_theta):
        (a,) = torch.autograd.grad(ours.sum(), parameter, retain_graph=True)
        (b,) = torch.autograd.grad(theirs.sum(), parameter, retain_graph=True)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradient_is_numerically_right():
    counts, log_mu, log_theta = parameters((1, 40), torch.float64)
    counts, log_mu, log_theta = counts[:3, :5], log_mu[:3, :5], log_theta[:, :5]

    def log_prob(log_mu, log_theta):
        return NegativeBinomial(log_mu, log_theta.exp(), log_mu).log_prob(counts)

    assert torch.autograd.gradcheck(
        log_prob, (log_mu.clone().requires_grad_(), log_theta.clone().requires_grad_())
    )


def test_is_finite_for_tiny_and_huge_means():
    log_mu = torch.tensor([[-60.0, -20.0, 0.0, 14.0]], requires_grad=True)
    counts = torch.tensor([[0.0, 3.0, 0.0, 1e6]])
    value = NegativeBinomial(log_mu, torch.ones(1, 4), log_mu).log_prob(counts)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(log_mu.grad).all()
