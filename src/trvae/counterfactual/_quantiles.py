"""Quantiles of counts, given the probability of larger counts, so that rare counts are resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

# Counts that are tried at once, and in all.
_BLOCK = 8
_MOST = 256


def count_quantile(
    tail: torch.Tensor, mean: torch.Tensor, inverse_dispersion: torch.Tensor | None
) -> torch.Tensor:
    r"""Quantile function of the negative binomial, or of Poisson without ``inverse_dispersion``.

    Parameters
    ----------
    tail
        Probabilities of a larger value, between 0 and 1, ``n`` in float64.
    mean
        Means, ``n``.
    inverse_dispersion
        The parameter :math:`\theta`, ``n``.

    Returns
    -------
    Integer-valued, ``n``.
    """
    mean = mean.double()
    if inverse_dispersion is None:
        return _quantile(tail, -mean, torch.zeros_like(mean), mean, stats.poisson, [mean])
    theta = inverse_dispersion.double()
    share = mean / (theta + mean)
    law = stats.nbinom, [theta, theta / (theta + mean)]
    return _quantile(tail, -theta * (mean / theta).log1p(), share, theta * share, *law)


def binomial_quantile(
    tail: torch.Tensor, n_trials: torch.Tensor, probability: torch.Tensor
) -> torch.Tensor:
    """Quantile function of the binomial distribution.

    Parameters
    ----------
    tail
        Probabilities of a larger value, between 0 and 1, ``n`` in float64.
    n_trials
        Numbers of trials, ``n``.
    probability
        Probabilities of success, from 0 to below 1, ``n`` in float64.

    Returns
    -------
    Integer-valued, ``n``.
    """
    n_trials = n_trials.double()
    # The rarer outcome is counted.
    is_rare = probability <= 0.5
    rare = torch.where(is_rare, probability, 1 - probability)
    odds = rare / (1 - rare)
    count = _quantile(
        torch.where(is_rare, tail, 1 - tail),
        n_trials * (-rare).log1p(),
        -odds,
        n_trials * odds,
        stats.binom,
        [n_trials, rare],
    )
    return torch.where(is_rare, count, n_trials - count)


def _quantile(
    tail: torch.Tensor,
    log_zero: torch.Tensor,
    a: torch.Tensor,
    c: torch.Tensor,
    law: Any,
    parameters: Sequence[torch.Tensor],
) -> torch.Tensor:
    r"""Smallest count that is exceeded with a probability of at most ``tail``.

    The three distributions are those with

    .. math:: p_k = p_{k-1} \frac{a (k - 1) + c}{k},

    so counts are tried from 0 on. SciPy finds those that are large.

    Parameters
    ----------
    tail
        The probabilities.
    log_zero
        Logarithm of :math:`p_0`.
    a, c
        Coefficients of the recurrence.
    law, parameters
        The distribution in SciPy.

    References
    ----------
    Panjer, *ASTIN Bulletin* 12, 22 (1981): the recurrence, with :math:`c = a + b`.
    """
    more = -log_zero.expm1()
    quantile = (more > tail).double()
    active = quantile.nonzero().squeeze(1)
    state = torch.stack([tail, log_zero.exp(), more, a, c])[:, active]
    # If the mean is large, SciPy's turn comes at once rather than after all these steps.
    is_near = state[4] <= _MOST * (1 - state[3])
    large, active, state = active[~is_near], active[is_near], state[:, is_near]
    for start in range(0, _MOST, _BLOCK):
        if len(active) == 0:
            break
        tail_left, pmf, more, a, c = state
        k = torch.arange(start + 1, start + _BLOCK + 1, device=tail.device)[:, None]
        pmfs = ((a * (k - 1) + c) / k).cumprod(0).mul_(pmf)
        exceeded = more - pmfs.cumsum(0)
        is_larger = exceeded > tail_left
        quantile[active] += is_larger.sum(0)
        state[1], state[2] = pmfs[-1], exceeded[-1]
        unfinished = is_larger[-1].nonzero().squeeze(1)
        active, state = active[unfinished], state[:, unfinished]
    far = torch.cat([large, active])
    if len(far):
        given = [values[far].cpu().numpy() for values in (tail, *parameters)]
        quantile[far] = torch.as_tensor(law.isf(*given), device=tail.device)
    return quantile
