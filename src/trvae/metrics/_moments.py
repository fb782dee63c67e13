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


def rmse_of_log_fold_changes(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Root mean squared error, over genes, of the log2 fold change of pseudobulks.

    .. math:: \sqrt{\overline{\left(\log_2 \frac{p_g + 1}{o_g + 1}\right)^2}}

    with the pseudobulks :math:`p_g, o_g` of predicted and observed cells, per 10,000 counts of these
    genes. The control, which both fold changes are relative to, cancels.

    Parameters
    ----------
    predicted, observed
        Log-normalised values ``log(1 + x)``, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    At least 0; NaN if a mean of ``x`` is negative.

    Raises
    ------
    ValueError
        If the numbers of genes differ.
    """
    bulks = [np.expm1(values).mean(0) for values in (predicted, observed)]
    if any((bulk < 0).any() or not bulk.any() for bulk in bulks):
        return float("nan")
    logs = [np.log2(1e4 * bulk / bulk.sum() + 1) for bulk in bulks]
    return float(root_mean_squared_error(*logs))


def discrimination(predicted: np.ndarray, observed: np.ndarray, others: np.ndarray) -> float:
    """Whether a predicted response is closer to the observed one than to those of other labels.

    Parameters
    ----------
    predicted, observed
        Change of the means, ``n_genes``.
    others
        Change of the means of other labels, ``n_labels x n_genes``.

    Returns
    -------
    Share of the other labels whose response is farther (in Euclidean distance) from the predicted
    one than the observed response is: 1 is best, 0.5 is chance. NaN without other labels.

    References
    ----------
    Wu et al., *arXiv* 2408.10609 (2024): the rank of the right perturbation.
    """
    if len(others) == 0:
        return float("nan")
    distances = np.linalg.norm(others - predicted, axis=1)
    return float(np.mean(distances > np.linalg.norm(observed - predicted)))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    # Rounding errors of constant values would correlate.
    if any(np.ptp(v) <= 1e-12 * max(1.0, np.abs(v).max()) for v in (a, b)):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
