"""Agreement of the means and variances of genes."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import root_mean_squared_error


def r2_of_means(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Squared Pearson correlation, over genes, of the mean expression.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    Between 0 and 1; NaN if all genes have the same mean.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 3; Lotfollahi et al., *Nature
    Methods* 16, 715 (2019), figure 2.
    """
    return _pearson(predicted.mean(0), observed.mean(0)) ** 2


def r2_of_variances(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Squared Pearson correlation, over genes, of the variance of expression.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    Between 0 and 1; NaN if all genes have the same variance.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 3.
    """
    return _pearson(predicted.var(0), observed.var(0)) ** 2


def pearson_of_change(predicted: np.ndarray, observed: np.ndarray, control: np.ndarray) -> float:
    """Pearson correlation, over genes, of the predicted and observed change in mean expression.

    Parameters
    ----------
    predicted, observed, control
        Log-normalised values, ``n_cells x n_genes``; the change is measured from ``control``.

    Returns
    -------
    Between -1 and 1; NaN if the change is the same for all genes, such as 0.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Roohani, Huang & Leskovec, *Nature Biotechnology* 42, 927 (2024).
    """
    before = control.mean(0)
    return _pearson(predicted.mean(0) - before, observed.mean(0) - before)


def rmse_of_means(
    predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Root mean squared error, over genes, of the mean expression.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.
    weights
        Weight of each gene, ``n_genes``. By default all genes count the same.

    Returns
    -------
    At least 0, in units of the values.

    Raises
    ------
    ValueError
        If the numbers of genes differ, or a value is NaN or infinite.

    References
    ----------
    Mejia et al., *arXiv* 2506.22641 (2025): the weighted mean squared error.
    """
    error = root_mean_squared_error(observed.mean(0), predicted.mean(0), sample_weight=weights)
    return float(error)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    # Rounding errors of constant values would correlate.
    if any(np.ptp(v) <= 1e-12 * max(1.0, np.abs(v).max()) for v in (a, b)):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
