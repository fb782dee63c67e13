"""Counterfactual counts and values of cells, given their decoded expectations."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import special, stats

Estimate = Literal["counterfactual", "decoded"]


def expected_counts(
    counts: np.ndarray, source_rate: np.ndarray, target_rate: np.ndarray
) -> np.ndarray:
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
    counts: np.ndarray,
    source_rate: np.ndarray,
    target_rate: np.ndarray,
    inverse_dispersion: np.ndarray | None,
    uniform: np.ndarray,
) -> np.ndarray:
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
    uniform
        Uniform variates in ``[0, 1)``, of the shape of ``counts``, which determine the draws.

    Returns
    -------
    Integer-valued, ``n_cells x n_genes``.
    """
    drawn = np.array(counts, dtype=np.float64, order="C")
    # Most counts are 0, and flat indexing is faster.
    positive = np.flatnonzero(counts > 0)
    share = _kept_share(source_rate.ravel()[positive], target_rate.ravel()[positive])
    falls, share = positive[share < 1], share[share < 1]
    # SciPy's quantile at a probability of 0 is -1.
    kept = stats.binom.ppf(uniform.ravel()[falls], counts.ravel()[falls], share)
    drawn.ravel()[falls] = np.maximum(kept, 0)
    drawn += count_quantile(uniform, _gain(source_rate, target_rate), inverse_dispersion)
    return drawn


def count_quantile(
    uniform: np.ndarray, mean: np.ndarray, inverse_dispersion: np.ndarray | None
) -> np.ndarray:
    """Quantile function of the negative binomial, or of Poisson without ``inverse_dispersion``.

    Parameters
    ----------
    uniform
        Probabilities in ``[0, 1)``.
    mean
        Means, of the shape of ``uniform``.
    inverse_dispersion
        Broadcastable to ``mean``.

    Returns
    -------
    Integer-valued, of the shape of ``uniform``.
    """
    # Most quantiles are 0, and SciPy's quantile function is slow. The probability of 0 is at
    # least exp(-mean), which is at least 1 - mean.
    candidates = np.flatnonzero(uniform > 1 - mean)
    theta = None
    if inverse_dispersion is None:
        probability_of_zero = np.exp(-mean.ravel()[candidates])
    else:
        theta = np.broadcast_to(inverse_dispersion, mean.shape)
        theta = theta[np.unravel_index(candidates, mean.shape)].astype(np.float64)
        probability_of_zero = np.exp(-theta * np.log1p(mean.ravel()[candidates] / theta))
    positive = uniform.ravel()[candidates] > probability_of_zero
    candidates = candidates[positive]
    uniform_positive, mean_positive = uniform.ravel()[candidates], mean.ravel()[candidates]
    quantile = np.zeros(mean.shape)
    if theta is None:
        quantile.ravel()[candidates] = stats.poisson.ppf(uniform_positive, mean_positive)
    else:
        theta = theta[positive]
        quantile.ravel()[candidates] = stats.nbinom.ppf(
            uniform_positive, theta, theta / (theta + mean_positive)
        )
    return quantile


def expected_values(
    values: np.ndarray,
    source_mean: np.ndarray,
    target_mean: np.ndarray,
    source_sd: np.ndarray,
    target_sd: np.ndarray,
    nonnegative: bool = False,
) -> np.ndarray:
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
    units = mean / np.maximum(added_sd, 1e-12)
    clipped = mean * stats.norm.cdf(units) + added_sd * stats.norm.pdf(units)
    return np.where(added_sd > 0, clipped, np.maximum(mean, 0.0))


def draw_values(
    values: np.ndarray,
    source_mean: np.ndarray,
    target_mean: np.ndarray,
    source_sd: np.ndarray,
    target_sd: np.ndarray,
    uniform: np.ndarray,
    nonnegative: bool = False,
) -> np.ndarray:
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
    uniform
        Uniform variates in ``[0, 1)``, of the shape of ``values``, which determine the draws.

    Returns
    -------
    ``n_cells x n_genes``.
    """
    mean, added_sd = _moments(values, source_mean, target_mean, source_sd, target_sd)
    noisy = np.flatnonzero(added_sd > 0)
    noise = special.ndtri(np.maximum(uniform.ravel()[noisy], 1e-16))
    drawn = np.ascontiguousarray(mean)
    drawn.ravel()[noisy] += added_sd.ravel()[noisy] * noise
    return np.maximum(drawn, 0.0) if nonnegative else drawn


def expected_grey(grey: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
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
    values: np.ndarray,
    source_mean: np.ndarray,
    target_mean: np.ndarray,
    source_sd: np.ndarray,
    target_sd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of :func:`draw_values` before clipping, and standard deviation of the added noise."""
    mean = target_mean + np.minimum(target_sd / source_sd, 1.0) * (values - source_mean)
    added_sd = np.sqrt(np.maximum(target_sd**2 - source_sd**2, 0.0))
    return mean, np.broadcast_to(added_sd, mean.shape)


def _kept_share(source_rate: np.ndarray, target_rate: np.ndarray) -> np.ndarray:
    ratio = np.divide(
        target_rate, source_rate, out=np.ones_like(target_rate), where=source_rate > 0
    )
    return np.minimum(ratio, 1.0)


def _gain(source_rate: np.ndarray, target_rate: np.ndarray) -> np.ndarray:
    return np.maximum(target_rate - source_rate, 0.0)
