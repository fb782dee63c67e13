"""Agreement of differentially expressed genes."""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control, spearmanr
from scipy.stats import t as t_distribution

# The variance that cells without one are given, as so many more cells would have it.
_PRIOR_CELLS = 10


def welch_t(
    control: np.ndarray,
    treated: np.ndarray,
    *,
    one_count: float = 0.0,
    least_variance: float = 0.01,
) -> np.ndarray:
    r"""Welch's t of each gene's change in mean expression, with a floor for the variance.

    .. math:: t = \frac{\bar y - \bar x}{\sqrt{v_x / n_x + v_y / n_y}}, \qquad
        v_x = \frac{10\,v_0 + (n_x - 1) \max(s_x^2,\; \bar x\,(c - \bar x))}{10 + n_x - 1}

    The prior variance :math:`v_0` is the mean over genes and both groups, at least
    ``least_variance``, and has the weight of ten cells. Counts have a second floor: a gene with a mean :math:`\bar x` below the
    value of a single count, :math:`c`, varies at least as if a cell had one count or none. Without
    floors, adding a constant to a gene without counts would be the clearest change of all.

    Parameters
    ----------
    control, treated
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.
    one_count
        Value of a single count in a typical cell, :math:`c`: ``log(2)`` for values scaled to the
        median library size. 0 for data that are not counts.
    least_variance
        Least prior variance, above 0, in squared units of the values. 0.01 is for log-normalised
        values.

    Returns
    -------
    ``n_genes``; 0 for genes whose mean does not change.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Welch, *Biometrika* 34, 28 (1947); Baldi & Long, *Bioinformatics* 17, 509 (2001), equation 5:
    the variance with a prior.
    """
    return welch_test(control, treated, one_count, least_variance)[0]


def welch_degrees_of_freedom(
    control: np.ndarray,
    treated: np.ndarray,
    *,
    one_count: float = 0.0,
    least_variance: float = 0.01,
) -> np.ndarray:
    r"""Degrees of freedom of :func:`welch_t` of each gene.

    .. math:: \frac{(v_x / n_x + v_y / n_y)^2}
        {(v_x / n_x)^2 / (10 + n_x - 1) + (v_y / n_y)^2 / (10 + n_y - 1)}

    If one group has far fewer cells than the other, they are those of the small one.

    Parameters
    ----------
    control, treated, one_count, least_variance
        See :func:`welch_t`, whose variances :math:`v_x, v_y` these are.

    Returns
    -------
    ``n_genes``.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Satterthwaite, *Biometrics Bulletin* 2, 110 (1946), equation 17; Smyth, *Statistical Applications
    in Genetics and Molecular Biology* 3, 3 (2004), section 3: cells of the prior count as well.
    """
    return welch_test(control, treated, one_count, least_variance)[1]


def welch_test(
    control: np.ndarray, treated: np.ndarray, one_count: float, least_variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`welch_t` and :func:`welch_degrees_of_freedom` at once."""
    if control.shape[1] != treated.shape[1]:
        raise ValueError(f"{control.shape[1]} genes can't be compared with {treated.shape[1]}.")
    groups = control, treated
    variances = [group.var(0, ddof=1 if len(group) > 1 else 0) for group in groups]
    prior = max(float(np.mean(variances)), least_variance)
    squared_error, of_groups = np.zeros((2, control.shape[1]))
    for group, variance in zip(groups, variances, strict=True):
        mean, n_others = group.mean(0), len(group) - 1
        variance = np.maximum(variance, mean * (one_count - mean))
        moderated = (_PRIOR_CELLS * prior + n_others * variance) / (_PRIOR_CELLS + n_others)
        squared_error += moderated / len(group)
        of_groups += (moderated / len(group)) ** 2 / (_PRIOR_CELLS + n_others)
    change = treated.mean(0) - control.mean(0)
    # Rounding errors are no change.
    change[np.abs(change) < 1e-12 * np.abs(control.mean(0))] = 0.0
    return change / np.sqrt(squared_error), squared_error**2 / of_groups


def significant_genes(
    t: np.ndarray, degrees_of_freedom: np.ndarray | float, fdr: float = 0.05
) -> np.ndarray:
    """Which genes change significantly, at a false discovery rate.

    The rate is kept from about 50 cells a group on. With fewer, rare counts are too skewed for a
    t-test: of counts of 20 cells, compared with 300, about a tenth of the significant genes don't
    change.

    Parameters
    ----------
    t
        Welch's t of each gene's change, ``n_genes``, from :func:`welch_t`.
    degrees_of_freedom
        Those of each gene, ``n_genes``, from :func:`welch_degrees_of_freedom`, or of all.
    fdr
        False discovery rate.

    Returns
    -------
    Booleans, ``n_genes``.

    References
    ----------
    Benjamini & Hochberg, *Journal of the Royal Statistical Society B* 57, 289 (1995).
    """
    p_values = 2 * t_distribution.sf(np.abs(t), df=degrees_of_freedom)
    return false_discovery_control(p_values) <= fdr


def rank_changed_genes(control: np.ndarray, treated: np.ndarray) -> np.ndarray:
    """Rank genes by how clearly they differ between two groups of cells.

    Parameters
    ----------
    control, treated
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    Positions of the genes, ``n_genes``, from the largest to the smallest absolute t of
    :func:`welch_t`.

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
        Number of top genes: those with the largest absolute t. Genes that don't change are not
        among them, however few others there are.

    Returns
    -------
    Shared top genes as a share of the observed top genes, between 0 and 1; NaN if no gene changes, or
    is predicted to.
    """
    if not predicted_t.any() or not observed_t.any():
        return float("nan")
    predicted, observed = (_top_genes(t, n_top_genes) for t in (predicted_t, observed_t))
    return len(np.intersect1d(predicted, observed)) / len(observed)


def _top_genes(t: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Positions of the genes that change most clearly, of those that change at all."""
    return rank_by_magnitude(t)[: min(n_top_genes, np.count_nonzero(t))]


def de_direction(predicted_t: np.ndarray, observed_t: np.ndarray, n_top_genes: int) -> float:
    """Share of the observed top genes for which the direction of the change is predicted.

    Parameters
    ----------
    predicted_t, observed_t, n_top_genes
        See :func:`de_overlap`: Welch's t of each gene, ``n_genes``, and the number of top genes.

    Returns
    -------
    Between 0 and 1; a gene that is predicted not to change counts as wrong. NaN without top genes.
    """
    if n_top_genes == 0:
        return float("nan")
    top = rank_by_magnitude(observed_t)[:n_top_genes]
    return float(np.mean(np.sign(predicted_t[top]) == np.sign(observed_t[top])))


def de_precision(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Share of the genes predicted to change significantly that do, in that direction.

    Parameters
    ----------
    predicted, observed
        Sign of the change of each significant gene, and 0 for the others, ``n_genes``.

    Returns
    -------
    Between 0 and 1; NaN if no gene is predicted to change.
    """
    if not predicted.any():
        return float("nan")
    return float(np.mean(predicted[predicted != 0] == observed[predicted != 0]))


def de_recall(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Share of the genes that change significantly which are predicted to, in that direction.

    Parameters
    ----------
    predicted, observed
        See :func:`de_precision`: signs of the significant changes, ``n_genes``.

    Returns
    -------
    Between 0 and 1; NaN if no gene changes.
    """
    return de_precision(observed, predicted)


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
