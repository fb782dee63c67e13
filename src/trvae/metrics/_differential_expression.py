"""Agreement of differentially expressed genes."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr, ttest_ind


def welch_t(control: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Welch's t of each gene's change in mean expression.

    Parameters
    ----------
    control, treated
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    ``n_genes``; 0 for genes without variance.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Welch, *Biometrika* 34, 28 (1947).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = ttest_ind(treated, control, equal_var=False).statistic
    t = np.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0)
    # Rounding errors are no change.
    return np.where(np.abs(t) < 1e-9, 0.0, t)


def rank_changed_genes(control: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Rank genes by how clearly they differ between two groups of cells.

    Parameters
    ----------
    control, treated
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    Positions of the genes, ``n_genes``, from the largest to the smallest absolute Welch's t;
    genes without variance come last.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Welch, *Biometrika* 34, 28 (1947).
    """
    return rank_by_magnitude(welch_t(control, treated))


def rank_by_magnitude(values: np.ndarray) -> np.ndarray:
    """Positions from the largest to the smallest absolute value; ties keep their order."""
    return np.argsort(-np.abs(values), kind="stable")


def de_overlap(predicted_t: np.ndarray, observed_t: np.ndarray, n_top_genes: int) -> float:
    """Overlap of the top genes of the predicted and the observed change.

    Parameters
    ----------
    predicted_t, observed_t
        Welch's t of each gene's change from control, ``n_genes``.
    n_top_genes
        Number of top genes: those with the largest absolute t.

    Returns
    -------
    Shared top genes as a share of all top genes, between 0 and 1; NaN if no gene is predicted to
    change.
    """
    if not predicted_t.any():
        return float("nan")
    predicted, observed = (rank_by_magnitude(t)[:n_top_genes] for t in (predicted_t, observed_t))
    return len(np.intersect1d(predicted, observed)) / len(observed)


def de_direction(predicted_t: np.ndarray, observed_t: np.ndarray, n_top_genes: int) -> float:
    """Share of the observed top genes for which the direction of the change is predicted.

    Parameters
    ----------
    predicted_t, observed_t, n_top_genes
        See :func:`de_overlap`: Welch's t of each gene, ``n_genes``, and the number of top genes.

    Returns
    -------
    Between 0 and 1; a gene that is predicted not to change counts as wrong.
    """
    top = rank_by_magnitude(observed_t)[:n_top_genes]
    return float(np.mean(np.sign(predicted_t[top]) == np.sign(observed_t[top])))


def de_rank_correlation(predicted_t: np.ndarray, observed_t: np.ndarray) -> float:
    """Spearman correlation, over genes, of Welch's t of the predicted and the observed change.

    Parameters
    ----------
    predicted_t, observed_t
        See :func:`de_overlap`: Welch's t of each gene, ``n_genes``.

    Returns
    -------
    Between -1 and 1; NaN if no gene changes.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Spearman, *American Journal of Psychology* 15, 72 (1904).
    """
    if not predicted_t.any() or not observed_t.any():
        return float("nan")
    return float(spearmanr(predicted_t, observed_t).statistic)
