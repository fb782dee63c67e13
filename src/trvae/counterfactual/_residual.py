"""Counterfactual counts and values of cells, given their decoded expectations."""

from __future__ import annotations

import math

import torch

from trvae._utils._matrices import nonzero_positions
from trvae.counterfactual._draws import is_below, tail_probability
from trvae.counterfactual._quantiles import binomial_quantile, count_quantile


def expected_counts(
    counts: torch.Tensor, source_rate: torch.Tensor, target_rate: torch.Tensor
) -> torch.Tensor:
    r"""Expectation of :func:`draw_counts`.

    .. math:: x \min(r_1 / r_0, 1) + \max(r_1 - r_0, 0)

    Parameters
    ----------
    counts
        The cells' own counts :math:`x`, ``n_cells x n_genes``.
    source_rate, target_rate
        Decoded expected counts :math:`r_0, r_1`, of the same shape.

    Returns
    -------
    ``n_cells x n_genes``. It equals ``counts`` where both rates agree.
    """
    return counts * _kept_share(source_rate, target_rate) + _gain(source_rate, target_rate)


def draw_counts(
    counts: torch.Tensor,
    source_rate: torch.Tensor,
    target_rate: torch.Tensor,
    inverse_dispersion: torch.Tensor | None,
    tails: torch.Tensor,
) -> torch.Tensor:
    r"""Thin the counts of genes that go down, and add counts to genes that go up.

    .. math::

        r_1 < r_0&: \quad \mathrm{Binomial}(x,\ r_1 / r_0) \\
        r_1 \ge r_0&: \quad x + \mathrm{NB}(r_1 - r_0,\ \theta)

    Parameters
    ----------
    counts, source_rate, target_rate
        See :func:`expected_counts`: counts and decoded rates, ``n_cells x n_genes``.
    inverse_dispersion
        The likelihood's :math:`\theta`, broadcastable to ``counts``; ``None`` for Poisson.
    tails
        Random integers from :func:`random_tails`, of the shape of ``counts``, at whose
        :func:`tail_probability` the draws are the quantiles.

    Returns
    -------
    Integer-valued, ``n_cells x n_genes``.
    """
    drawn = counts.clone(memory_format=torch.contiguous_format)
    entries, change = drawn.view(-1), target_rate - source_rate
    positions, gains = _positive_draws(change, inverse_dispersion, tails)
    entries[positions] += gains.to(drawn.dtype)
    # Most counts are 0.
    falls = nonzero_positions(change.clamp_(max=0).mul_(counts))
    before, after = (rate.reshape(-1)[falls].double() for rate in (source_rate, target_rate))
    tail = tail_probability(tails.reshape(-1)[falls])
    entries[falls] = binomial_quantile(tail, entries[falls], after / before).to(drawn.dtype)
    return drawn


def draw_decoded_counts(
    mean: torch.Tensor,
    inverse_dispersion: torch.Tensor | None,
    zero_inflation: torch.Tensor | None,
    tails: torch.Tensor,
) -> torch.Tensor:
    """Draw counts from the likelihood.

    Parameters
    ----------
    mean
        Expected counts, including inflated zeros, ``n_cells x n_genes``.
    inverse_dispersion, tails
        See :func:`draw_counts`: parameter of the likelihood, and random integers.
    zero_inflation
        Probability of an inflated zero, of the shape of ``mean``, if there are such zeros.

    Returns
    -------
    Integer-valued, ``n_cells x n_genes``.
    """
    drawn = torch.zeros_like(mean, memory_format=torch.contiguous_format)
    positions, counts = _positive_draws(mean, inverse_dispersion, tails, zero_inflation)
    drawn.view(-1)[positions] = counts.to(drawn.dtype)
    return drawn


def _positive_draws(
    mean: torch.Tensor,
    inverse_dispersion: torch.Tensor | None,
    tails: torch.Tensor,
    zero_inflation: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in the flattened matrix where a count can be positive, and the drawn counts."""
    # The probability of a positive count is at most the mean.
    positions = nonzero_positions(is_below(tails, mean))

    def at(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1)[positions % values.numel()].double()

    tail, mean = tail_probability(tails.reshape(-1)[positions]), at(mean)
    if zero_inflation is not None:
        # The lowest quantiles are the inflated zeros, the others those of the NB.
        share = (1 - at(zero_inflation)).clamp(min=1e-12)
        tail, mean = (tail / share).clamp(max=1), mean / share
    theta = None if inverse_dispersion is None else at(inverse_dispersion)
    return positions, count_quantile(tail, mean, theta)


def expected_values(
    values: torch.Tensor,
    source_mean: torch.Tensor,
    target_mean: torch.Tensor,
    source_sd: torch.Tensor,
    target_sd: torch.Tensor,
    nonnegative: bool = False,
) -> torch.Tensor:
    r"""Expectation of :func:`draw_values`.

    .. math:: d_1 + \min(\sigma_1 / \sigma_0, 1)\,(x - d_0)

    Parameters
    ----------
    values
        The cells' own log-normalised values :math:`x`, ``n_cells x n_genes``.
    source_mean, target_mean
        Decoded means :math:`d_0, d_1`, of the same shape.
    source_sd, target_sd
        Standard deviations :math:`\sigma_0, \sigma_1` of the likelihood, broadcastable to
        ``values``.
    nonnegative
        Whether :func:`draw_values` clips its draws at 0.

    Returns
    -------
    ``n_cells x n_genes``. It equals ``values`` where means and standard deviations agree.
    """
    mean, added_sd = _moments(values, source_mean, target_mean, source_sd, target_sd)
    if not nonnegative:
        return mean
    # The mean of a normal distribution that is clipped at 0.
    units = mean / added_sd.clamp(min=1e-12)
    density = (-units.square() / 2).exp() / math.sqrt(2 * math.pi)
    clipped = mean * torch.special.ndtr(units) + added_sd * density
    return torch.where(added_sd > 0, clipped, mean.clamp(min=0))


def draw_values(
    values: torch.Tensor,
    source_mean: torch.Tensor,
    target_mean: torch.Tensor,
    source_sd: torch.Tensor,
    target_sd: torch.Tensor,
    tails: torch.Tensor,
    nonnegative: bool = False,
) -> torch.Tensor:
    r"""Move values from one normal distribution to another.

    The residual :math:`x - d_0` shrinks to a smaller standard deviation; to reach a larger one,
    noise is added:

    .. math::

        d_1 + \min(\sigma_1 / \sigma_0, 1)\,(x - d_0)
        + \mathcal{N}(0,\ \max(\sigma_1^2 - \sigma_0^2, 0))

    Parameters
    ----------
    values, source_mean, target_mean, source_sd, target_sd, nonnegative
        See :func:`expected_values`: values, and the decoded distributions.
    tails
        Random integers, see :func:`draw_counts`.

    Returns
    -------
    ``n_cells x n_genes``.
    """
    mean, added_sd = _moments(values, source_mean, target_mean, source_sd, target_sd)
    noise = -torch.special.ndtri(tail_probability(tails, mean.dtype))
    drawn = mean + added_sd * noise
    return drawn.clamp(min=0) if nonnegative else drawn


def expected_grey(grey: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    r"""Expected grey values of pixels that are black or white, each with a probability.

    If a pixel is less likely to be white under the target, a white pixel stays white with
    probability :math:`d_1 / d_0`; otherwise, a black one stays black with probability
    :math:`(1 - d_1) / (1 - d_0)`. This changes as few pixels as possible.

    .. math:: x \min(d_1 / d_0, 1) + (1 - x) (1 - \min((1 - d_1) / (1 - d_0), 1))

    Parameters
    ----------
    grey
        The images' own values :math:`x` from 0 to 1, ``n_images x n_pixels``.
    source, target
        Decoded probabilities :math:`d_0, d_1`, of the same shape.

    Returns
    -------
    ``n_images x n_pixels``, from 0 to 1. It equals ``grey`` where both probabilities agree.
    """
    stays_white = _kept_share(source, target)
    stays_black = _kept_share(1 - source, 1 - target)
    return grey * stays_white + (1 - grey) * (1 - stays_black)


def _moments(
    values: torch.Tensor,
    source_mean: torch.Tensor,
    target_mean: torch.Tensor,
    source_sd: torch.Tensor,
    target_sd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of :func:`draw_values` before clipping, and standard deviation of the added noise."""
    mean = target_mean + (target_sd / source_sd).clamp(max=1) * (values - source_mean)
    return mean, (target_sd.square() - source_sd.square()).clamp(min=0).sqrt()


def _kept_share(source_rate: torch.Tensor, target_rate: torch.Tensor) -> torch.Tensor:
    return torch.where(source_rate > 0, target_rate / source_rate, 1).clamp(max=1)


def _gain(source_rate: torch.Tensor, target_rate: torch.Tensor) -> torch.Tensor:
    return (target_rate - source_rate).clamp(min=0)
