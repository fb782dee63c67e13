"""What a cell would have been under another condition, as pure functions of arrays.

The decoder knows the average cell at ``z``; what it misses of a cell (its residual) is carried
over, so that the prediction remains that cell.
"""

from __future__ import annotations

import numpy as np
from scipy import stats


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
    """Thin the counts of genes that go down, and add counts to those that go up.

    A gene with a smaller rate under the target keeps ``Binomial(x, r1 / r0)`` of its counts. One
    with a larger rate keeps all and receives negative-binomial counts of mean ``r1 - r0``.

    Parameters
    ----------
    counts, source_rate, target_rate
        As in :func:`expected_counts`.
    inverse_dispersion
        The likelihood's :math:`theta`, broadcastable to ``counts``; ``None`` for Poisson.
    uniform
        Uniform variates in ``[0, 1)``, of the shape of ``counts``: the only source of chance.

    Returns
    -------
    Integer-valued, ``n_cells x n_genes``.
    """
    drawn = counts.astype(np.float64)
    falls = (target_rate < source_rate) & (counts > 0)
    kept_share = _kept_share(source_rate[falls], target_rate[falls])
    # At a probability of exactly 0 the library's quantile is -1.
    kept = stats.binom.ppf(uniform[falls], drawn[falls], kept_share)
    drawn[falls] = np.maximum(kept, 0)
    rises = target_rate > source_rate
    gain = _gain(source_rate, target_rate)
    drawn[rises] += count_quantile(
        uniform[rises],
        gain[rises],
        None
        if inverse_dispersion is None
        else np.broadcast_to(inverse_dispersion, counts.shape)[rises],
    )
    return drawn


def count_quantile(
    uniform: np.ndarray, mean: np.ndarray, inverse_dispersion: np.ndarray | None
) -> np.ndarray:
    """Quantile of the negative binomial, or of Poisson without ``inverse_dispersion``.

    Parameters
    ----------
    uniform, mean, inverse_dispersion
        Arrays of one shape.

    Returns
    -------
    Integer-valued, of the same shape.
    """
    if inverse_dispersion is None:
        probability_of_zero = np.exp(-mean)
    else:
        probability_of_zero = np.exp(-inverse_dispersion * np.log1p(mean / inverse_dispersion))
    quantile = np.zeros(mean.shape)
    # Most genes of most cells get nothing; the library's quantile function is slow.
    some = uniform > probability_of_zero
    if inverse_dispersion is None:
        quantile[some] = stats.poisson.ppf(uniform[some], mean[some])
    else:
        theta = inverse_dispersion[some].astype(np.float64)
        quantile[some] = stats.nbinom.ppf(uniform[some], theta, theta / (theta + mean[some]))
    return quantile


def shift_values(
    values: np.ndarray,
    source_mean: np.ndarray,
    target_mean: np.ndarray,
    nonnegative: bool = False,
) -> np.ndarray:
    """Add the difference of the two decodings to log-normalised values.

    Parameters
    ----------
    values
        The cells' own values, ``n_cells x n_genes``.
    source_mean, target_mean
        Decoded means, of the same shape.
    nonnegative
        Whether no value may fall below 0.

    Returns
    -------
    ``n_cells x n_genes``.
    """
    shifted = values + (target_mean - source_mean)
    return np.maximum(shifted, 0.0) if nonnegative else shifted


def _kept_share(source_rate: np.ndarray, target_rate: np.ndarray) -> np.ndarray:
    ratio = np.divide(
        target_rate, source_rate, out=np.ones_like(target_rate), where=source_rate > 0
    )
    return np.minimum(ratio, 1.0)


def _gain(source_rate: np.ndarray, target_rate: np.ndarray) -> np.ndarray:
    return np.maximum(target_rate - source_rate, 0.0)
