"""Faster log-probabilities for scvi-tools' distributions."""

from __future__ import annotations

import math

import torch
from scvi import distributions
from torch.nn.functional import softplus

from trvae.module._sparse import nonzero_positions


class _ScaleOnDemand:
    """The normalised mean, which training never asks for."""

    _log_scale: torch.Tensor

    @property
    def scale(self) -> torch.Tensor:
        """Normalised mean."""
        return self._log_scale.exp()

    @scale.setter
    def scale(self, value: None) -> None:
        """Ignore what scvi-tools' initialisers set."""


class Poisson(_ScaleOnDemand, distributions.Poisson):
    """scvi-tools' Poisson distribution with a log-probability made for counts that are mostly 0.

    Parameters
    ----------
    log_mu
        Log of the mean, ``... x n_genes``.
    log_scale
        Log of the normalised mean, of the shape of ``log_mu``.
    """

    def __init__(self, log_mu: torch.Tensor, log_scale: torch.Tensor):
        super().__init__(rate=log_mu.exp())
        self._log_mu = log_mu
        self._log_scale = log_scale

    def log_prob(self, value: torch.Tensor, nonzero: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probability of counts, of the shape of ``rate``.

        Parameters
        ----------
        value
            Counts, with ``n_genes`` columns.
        nonzero
            Where the flattened counts are not 0, ascending, if that is known already.
        """
        value, positive = _with_positions(value, nonzero, self._log_mu.shape)
        log_factorial = torch.lgamma(value.reshape(-1)[positive] + 1)
        log_prob = value * self._log_mu - self.rate
        return log_prob.view(-1).index_add(0, positive, log_factorial, alpha=-1).view_as(log_prob)


class NegativeBinomial(_ScaleOnDemand, distributions.NegativeBinomial):
    """scvi-tools' negative binomial with a log-probability made for counts that are mostly 0.

    Parameters
    ----------
    log_mu
        Log of the mean, ``... x n_genes``.
    theta
        Inverse dispersion, of one of the shapes ``1 x n_genes`` and ``n_cells x n_genes``.
    log_scale
        Log of the normalised mean, of the shape of ``log_mu``.
    """

    def __init__(self, log_mu: torch.Tensor, theta: torch.Tensor, log_scale: torch.Tensor):
        # Derivatives go by way of log_mu.
        super().__init__(mu=log_mu.detach().exp(), theta=theta)
        self._log_mu = log_mu
        self._log_scale = log_scale
        self._narrow_theta = theta

    def log_prob(self, value: torch.Tensor, nonzero: torch.Tensor | None = None) -> torch.Tensor:
        """As :meth:`Poisson.log_prob`."""
        return _negative_binomial_log_prob(self, value, nonzero)


class ZeroInflatedNegativeBinomial(_ScaleOnDemand, distributions.ZeroInflatedNegativeBinomial):
    """scvi-tools' zero-inflated negative binomial, with the work of :class:`NegativeBinomial`.

    Parameters
    ----------
    log_mu, theta, log_scale
        As in :class:`NegativeBinomial`.
    zi_logits
        Logits of the probability of an inflated zero, of the shape of ``log_mu``.
    """

    def __init__(self, log_mu, theta, log_scale, zi_logits):
        super().__init__(mu=log_mu.detach().exp(), theta=theta, zi_logits=zi_logits)
        self._log_mu = log_mu
        self._log_scale = log_scale
        self._narrow_theta = theta

    def log_prob(self, value: torch.Tensor, nonzero: torch.Tensor | None = None) -> torch.Tensor:
        """As :meth:`Poisson.log_prob`."""
        log_prob = _negative_binomial_log_prob(self, value, nonzero) - self.zi_logits
        return torch.where(value > 0, log_prob, softplus(log_prob)) - softplus(-self.zi_logits)


class Normal(distributions.Normal):
    """scvi-tools' normal distribution with a log-probability that takes fewer passes.

    Parameters
    ----------
    loc
        Mean, ``... x n_genes``.
    scale
        Standard deviation, of one of the shapes ``1 x n_genes`` and ``n_cells x n_genes``.
    log_scale
        Its logarithm, if that is known already.
    """

    def __init__(
        self, loc: torch.Tensor, scale: torch.Tensor, log_scale: torch.Tensor | None = None
    ):
        super().__init__(loc, scale, normal_mu=loc, validate_args=False)
        self._narrow_scale = scale
        self._log_scale = log_scale

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of values, of the shape that they have with ``loc``."""
        scale = self._narrow_scale
        log_scale = scale.log() if self._log_scale is None else self._log_scale
        return _NormalLogProb.apply(value, self.loc, scale, log_scale)


def _negative_binomial_log_prob(
    distribution: NegativeBinomial | ZeroInflatedNegativeBinomial,
    value: torch.Tensor,
    nonzero: torch.Tensor | None,
) -> torch.Tensor:
    """Log-probability of counts, of a zero-inflated distribution that without the inflation."""
    log_mu = distribution._log_mu
    value, positive = _with_positions(value, nonzero, log_mu.shape)
    return _NegativeBinomialLogProb.apply(
        value, positive, log_mu, distribution.mu, distribution._narrow_theta
    )


def _with_positions(
    value: torch.Tensor, nonzero: torch.Tensor | None, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of a shape, and where they are not 0."""
    # Minibatches of a CSC matrix are in Fortran's order.
    value = value.contiguous()
    if nonzero is not None and value.shape == shape:
        return value, nonzero
    value = value.expand(shape)
    return value, nonzero_positions(value)


class _NormalLogProb(torch.autograd.Function):
    """Log-probability of ``x``, with its derivatives, that of the scale by way of its logarithm."""

    @staticmethod
    def forward(ctx, x, loc, scale, log_scale):
        deviation = (x - loc).div_(scale)
        ctx.save_for_backward(deviation, scale)
        ctx.shapes = x.shape, loc.shape
        constant = log_scale + 0.5 * math.log(2 * math.pi)
        return deviation.square().mul_(-0.5).sub_(constant)

    @staticmethod
    def backward(ctx, grad):
        deviation, scale = ctx.saved_tensors
        grad_loc = (deviation / scale).mul_(grad)
        grad_log_scale = deviation.square().sub_(1).mul_(grad).sum_to_size(scale.shape)
        grad_x = -grad_loc.sum_to_size(ctx.shapes[0]) if ctx.needs_input_grad[0] else None
        return grad_x, grad_loc.sum_to_size(ctx.shapes[1]), None, grad_log_scale


class _NegativeBinomialLogProb(torch.autograd.Function):
    r"""Log-probability of counts ``x``, with its derivatives for ``log_mu`` and ``theta``.

    .. math:: x \log\frac{\mu}{\theta + \mu} + \theta \log\frac{\theta}{\theta + \mu}
        + \log\frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}

    The first and the last term vanish at a count of 0, so that they are evaluated elsewhere only.
    """

    @staticmethod
    def forward(ctx, x, positive, log_mu, mu, theta):
        log_ratio = (mu / theta).log1p_().neg_()
        log_prob = log_ratio * theta

        x_pos = x.reshape(-1)[positive]
        theta_pos = theta.expand_as(x).reshape(-1)[positive]
        log_odds = log_mu.reshape(-1)[positive] - (mu.reshape(-1)[positive] + theta_pos).log()
        log_prob.view(-1).index_add_(
            0,
            positive,
            x_pos * log_odds
            + torch.lgamma(x_pos + theta_pos)
            - torch.lgamma(theta_pos)
            - torch.lgamma(x_pos + 1),
        )
        ctx.save_for_backward(x, mu, theta, log_ratio, positive, x_pos, theta_pos)
        return log_prob

    @staticmethod
    def backward(ctx, grad):
        x, mu, theta, log_ratio, positive, x_pos, theta_pos = ctx.saved_tensors
        # (x - mu) / (theta + mu) is what both derivatives are made of.
        residual = (x - mu).div_(mu + theta)
        grad_theta = log_ratio - residual
        grad_theta.view(-1).index_add_(
            0, positive, torch.digamma(x_pos + theta_pos) - torch.digamma(theta_pos)
        )
        grad_theta = grad_theta.mul_(grad).sum_to_size(theta.shape)
        return None, None, residual.mul_(theta).mul_(grad), None, grad_theta
