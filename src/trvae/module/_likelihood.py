"""scvi-tools' distributions with log-probabilities that are faster to compute and differentiate."""

from __future__ import annotations

import math

import torch
from scvi import distributions
from torch.nn.functional import softplus

from trvae.module._sparse import nonzero_positions


class Poisson(distributions.Poisson):
    """Poisson distribution whose log-probability is made for counts that are mostly 0.

    Parameters
    ----------
    log_mu
        Log of the mean, ``... x n_genes``.
    log_scale
        Log of the normalised mean, of the shape of ``log_mu``.
    """

    def __init__(self, log_mu: torch.Tensor, log_scale: torch.Tensor):
        super().__init__(rate=log_mu.exp(), scale=log_scale.exp(), validate_args=False)
        self._log_mu = log_mu

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of counts, of the shape of ``log_mu``."""
        value = _contiguous(value, self._log_mu.shape)
        positive = _Positive(value)
        log_factorial = torch.lgamma(positive.of(value) + 1)
        return positive.added(value * self._log_mu - self.rate, -log_factorial)


class NegativeBinomial(distributions.NegativeBinomial):
    """Negative binomial whose log-probability is made for counts that are mostly 0.

    Parameters
    ----------
    log_mu
        Log of the mean, ``... x n_genes``.
    theta
        Inverse dispersion, ``1 x n_genes`` or ``n_cells x n_genes``.
    log_scale
        Log of the normalised mean, of the shape of ``log_mu``.
    """

    def __init__(self, log_mu: torch.Tensor, theta: torch.Tensor, log_scale: torch.Tensor):
        # log_prob differentiates with respect to log_mu.
        super().__init__(mu=log_mu.detach().exp(), theta=theta, scale=log_scale.exp())
        self._log_mu = log_mu

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of counts, of the shape of ``log_mu``."""
        return _NegativeBinomialLogProb.apply(value, self._log_mu, self.mu, self.theta)


class ZeroInflatedNegativeBinomial(distributions.ZeroInflatedNegativeBinomial):
    """Zero-inflated negative binomial, computed like :class:`NegativeBinomial`.

    Parameters
    ----------
    log_mu, theta, log_scale
        See :class:`NegativeBinomial`: log mean, inverse dispersion and log normalised mean.
    zi_logits
        Logits of the probability of an inflated zero, of the shape of ``log_mu``.
    """

    def __init__(
        self,
        log_mu: torch.Tensor,
        theta: torch.Tensor,
        log_scale: torch.Tensor,
        zi_logits: torch.Tensor,
    ):
        super().__init__(
            mu=log_mu.detach().exp(), theta=theta, zi_logits=zi_logits, scale=log_scale.exp()
        )
        self._log_mu = log_mu

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of counts, of the shape of ``log_mu``."""
        of_nb = _NegativeBinomialLogProb.apply(value, self._log_mu, self.mu, self.theta)
        log_prob = of_nb - self.zi_logits
        return torch.where(value > 0, log_prob, softplus(log_prob)) - softplus(-self.zi_logits)


class Normal(distributions.Normal):
    """Normal distribution whose standard deviation may be shared by all cells.

    Parameters
    ----------
    loc
        Mean, ``... x n_genes``.
    scale
        Standard deviation, broadcastable to ``loc``.
    log_scale
        Its logarithm, if already known.
    """

    def __init__(
        self, loc: torch.Tensor, scale: torch.Tensor, log_scale: torch.Tensor | None = None
    ):
        super().__init__(loc, scale, normal_mu=loc, validate_args=False)
        self._log_scale = scale.log() if log_scale is None else log_scale

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-probability of values, of their shape broadcast with ``loc``."""
        deviation = (value - self.loc) / self.scale
        return -0.5 * deviation.square() - (self._log_scale + 0.5 * math.log(2 * math.pi))


def _contiguous(counts: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Counts of a minibatch, which are in Fortran order if they come from a CSC matrix."""
    return counts.contiguous().expand(shape)


class _Positive:
    """The counts above 0, for terms that vanish at 0.

    They are few, but only a CPU knows how many at once: a GPU takes all counts, also those of 0.
    """

    def __init__(self, counts: torch.Tensor):
        self.positions = nonzero_positions(counts) if counts.device.type == "cpu" else None

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Values of these counts, given those of all."""
        return values if self.positions is None else values.reshape(-1)[self.positions]

    def added(self, values: torch.Tensor, of_positive: torch.Tensor) -> torch.Tensor:
        """Values of all counts, in place, plus terms of these."""
        if self.positions is None:
            return values.add_(of_positive)
        values.view(-1).index_add_(0, self.positions, of_positive)
        return values


class _NegativeBinomialLogProb(torch.autograd.Function):
    r"""Log-probability of counts ``x``, with derivatives for ``log_mu`` and ``theta``.

    .. math:: x \log\frac{\mu}{\theta + \mu} + \theta \log\frac{\theta}{\theta + \mu}
        + \log\frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}

    The first and the last term vanish at a count of 0 and are computed for other counts only.
    """

    @staticmethod
    def forward(ctx, x, log_mu, mu, theta):
        x = _contiguous(x, log_mu.shape)
        positive = _Positive(x)
        log_ratio = (mu / theta).log1p_().neg_()

        x_pos, log_mu_pos, mu_pos, theta_pos = map(positive.of, (x, log_mu, mu, theta))
        log_odds = log_mu_pos - (mu_pos + theta_pos).log()
        of_positive = (
            x_pos * log_odds
            + torch.lgamma(x_pos + theta_pos)
            - torch.lgamma(theta_pos)
            - torch.lgamma(x_pos + 1)
        )
        ctx.positive = positive
        ctx.save_for_backward(x, mu, theta, log_ratio, x_pos, theta_pos)
        return positive.added(log_ratio * theta, of_positive)

    @staticmethod
    def backward(ctx, grad):
        x, mu, theta, log_ratio, x_pos, theta_pos = ctx.saved_tensors
        # Both derivatives are made of (x - mu) / (theta + mu).
        residual = (x - mu).div_(mu + theta)
        of_positive = torch.digamma(x_pos + theta_pos) - torch.digamma(theta_pos)
        grad_theta = ctx.positive.added(log_ratio - residual, of_positive)
        return None, residual.mul_(theta).mul_(grad), None, grad_theta.mul_(grad)
