"""Measures of agreement between two groups of cells, each ``n_cells x n_genes``."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist

from trvae.module._mmd import multi_scale_mmd


def r2_of_means(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Squared Pearson correlation, over genes, of the genes' means.

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
    return _squared_pearson(predicted.mean(0), observed.mean(0))


def r2_of_variances(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Squared Pearson correlation, over genes, of the genes' variances.

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
    return _squared_pearson(predicted.var(0), observed.var(0))


def pearson_of_change(predicted: np.ndarray, observed: np.ndarray, control: np.ndarray) -> float:
    """Pearson correlation, over genes, of the predicted and the observed change of the means.

    Parameters
    ----------
    predicted, observed, control
        Log-normalised values, ``n_cells x n_genes``. Changes are from ``control``.

    Returns
    -------
    Between -1 and 1; NaN if nothing changes.

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
    """Root mean squared difference, over genes, of the genes' means.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``.
    weights
        Weight of each gene, ``n_genes``; by default all count the same.

    Returns
    -------
    At least 0, in units of the values.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Mejia et al., *arXiv* 2506.22641 (2025): the weighted mean squared error.
    """
    squared = (predicted.mean(0) - observed.mean(0)) ** 2
    return float(np.sqrt(np.average(squared, weights=weights)))


def energy_distance(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Energy distance between two groups of cells.

    .. math:: 2\,\overline{\lVert a - b \rVert} - \overline{\lVert a - a' \rVert}
        - \overline{\lVert b - b' \rVert}

    Parameters
    ----------
    predicted, observed
        Coordinates, ``n_cells x n_features``.

    Returns
    -------
    At least 0, and 0 if the two groups are the same.

    Raises
    ------
    ValueError
        If the numbers of features differ.

    References
    ----------
    Székely & Rizzo, *Journal of Statistical Planning and Inference* 143, 1249 (2013),
    equation 6 (the V-statistic).
    """
    between = cdist(predicted, observed).mean()
    within = cdist(predicted, predicted).mean() + cdist(observed, observed).mean()
    return float(2 * between - within)


def frechet_distance(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Squared Fréchet distance between normal distributions fitted to two groups.

    .. math:: \lVert \mu - \mu' \rVert^2
        + \mathrm{tr}(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2})

    Parameters
    ----------
    predicted, observed
        Coordinates, ``n_cells x n_features``, such as an image classifier's features.

    Returns
    -------
    At least 0, in squared units of the coordinates.

    Raises
    ------
    ValueError
        If the numbers of features differ.

    References
    ----------
    Dowson & Landau, *Journal of Multivariate Analysis* 12, 450 (1982), equation 4; Heusel et al.,
    *NeurIPS* (2017), equation 6.
    """
    covariances = [np.atleast_2d(np.cov(group, rowvar=False)) for group in (predicted, observed)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    # The product has the eigenvalues of this symmetric matrix.
    of_product = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)
    means = np.square(predicted.mean(0) - observed.mean(0)).sum()
    distance = means + np.trace(covariances[0] + covariances[1]) - 2 * np.sqrt(of_product).sum()
    # Rounding can make that of two equal groups negative.
    return float(max(distance, 0.0))


def maximum_mean_discrepancy(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Squared maximum mean discrepancy between two groups of cells.

    The kernel is the mean of five Gaussians :math:`\exp(-d^2 / 2s)` whose :math:`s` are 1/4, 1/2,
    1, 2 and 4 times half the median squared distance between observed cells.

    Parameters
    ----------
    predicted, observed
        Coordinates, ``n_cells x n_features``.

    Returns
    -------
    At least 0, and 0 if the two groups are the same (the V-statistic).

    Raises
    ------
    ValueError
        If the numbers of features differ.

    References
    ----------
    Gretton et al., *JMLR* 13, 723 (2012), equation 5 and section 8.
    """
    median = float(np.median(pdist(observed, "sqeuclidean")))
    y = torch.as_tensor(np.concatenate([predicted, observed]), dtype=torch.float64)
    group = (torch.arange(len(y)) >= len(predicted)).long()
    scales = [0.5 * median * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    return float(multi_scale_mmd(y, group, bandwidths=scales))


def coverage(predicted: np.ndarray, observed: np.ndarray, level: float = 0.9) -> float:
    """Share of observed values within the central interval of the predicted cells' values.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.
    level
        The share that the interval, from the quantile ``(1 - level) / 2`` to ``(1 + level) / 2`` of
        a gene's predicted values, should cover.

    Returns
    -------
    Between 0 and 1, averaged over genes; ``level`` if the distributions agree. Where many
    predicted values are equal, such as zeros, a quantile can fall among them; an observed value
    equal to them is then counted by that share of them that is inside.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Czado, Gneiting & Held, *Biometrics* 65, 1254 (2009), section 2: the nonrandomised probability
    integral transform of counts.
    """
    low, high = (1 - level) / 2, (1 + level) / 2
    shares = []
    for values, new in zip(np.sort(predicted, axis=0).T, observed.T, strict=True):
        below = np.searchsorted(values, new, "left") / len(values)
        up_to = np.searchsorted(values, new, "right") / len(values)
        inside = np.minimum(up_to, high) - np.maximum(below, low)
        width = up_to - below
        tied = width > 0
        shares.append(
            np.where(
                tied,
                np.maximum(inside, 0) / np.where(tied, width, 1),
                (below >= low) & (below <= high),
            ).mean()
        )
    return float(np.mean(shares))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    # Rounding alone must not pass for a correlation.
    if any(np.ptp(v) <= 1e-12 * max(1.0, np.abs(v).max()) for v in (a, b)):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _squared_pearson(a: np.ndarray, b: np.ndarray) -> float:
    return _pearson(a, b) ** 2
