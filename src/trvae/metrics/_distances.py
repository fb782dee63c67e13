"""Distances between two groups of cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics.pairwise import euclidean_distances


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
    At least 0, in units of the coordinates; 0 if the two groups are the same.

    Raises
    ------
    ValueError
        If the numbers of features differ.

    References
    ----------
    Székely & Rizzo, *Journal of Statistical Planning and Inference* 143, 1249 (2013),
    equation 6 (the V-statistic).
    """
    return _energy_distance(_squared_distances(predicted, observed))


def wasserstein_distance(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Wasserstein distance between the distributions of each gene, averaged over genes.

    .. math:: \int \lvert F(x) - F'(x) \rvert \, dx

    with the cumulative distribution functions :math:`F, F'` of a gene in the two groups.

    Parameters
    ----------
    predicted, observed
        Log-normalised values, ``n_cells x n_genes``; the numbers of cells may differ.

    Returns
    -------
    At least 0, in units of the values.

    Raises
    ------
    ValueError
        If the numbers of genes differ.

    References
    ----------
    Ramdas, Garcia Trillos & Cuturi, *Entropy* 19, 47 (2017), section 2.
    """
    genes = zip(predicted.T, observed.T, strict=True)
    return float(np.mean([stats.wasserstein_distance(*values) for values in genes]))


def frechet_distance(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Squared Fréchet distance between normal distributions fitted to two groups of cells.

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
    # The product of the covariances has the eigenvalues of this symmetric matrix.
    of_product = np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)
    means = np.square(predicted.mean(0) - observed.mean(0)).sum()
    distance = means + np.trace(covariances[0] + covariances[1]) - 2 * np.sqrt(of_product).sum()
    # Rounding can make the distance of equal groups negative.
    return float(max(distance, 0.0))


def maximum_mean_discrepancy(predicted: np.ndarray, observed: np.ndarray) -> float:
    r"""Squared maximum mean discrepancy between two groups of cells.

    The kernel is the mean of five Gaussians :math:`\exp(-d^2 / 2s)` with :math:`s` at 1/4, 1/2, 1,
    2 and 4 times half the median squared distance between observed cells. Where that is 0, it is the
    mean squared distance between predicted and observed cells.

    Parameters
    ----------
    predicted, observed
        Coordinates, ``n_cells x n_features``.

    Returns
    -------
    At least 0, without a unit; 0 if the two groups are the same (the V-statistic).

    Raises
    ------
    ValueError
        If the numbers of features differ.

    References
    ----------
    Gretton et al., *JMLR* 13, 723 (2012), equation 5 and section 8.
    """
    return _maximum_mean_discrepancy(_squared_distances(predicted, observed))


def energy_distance_and_mmd(predicted: np.ndarray, observed: np.ndarray) -> tuple[float, float]:
    """Both distances, for which cells are compared once."""
    squared = _squared_distances(predicted, observed)
    return _energy_distance(squared), _maximum_mean_discrepancy(squared)


class _SquaredDistances(NamedTuple):
    """Squared Euclidean distances between the cells of two groups, and within each."""

    between: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def _squared_distances(predicted: np.ndarray, observed: np.ndarray) -> _SquaredDistances:
    return _SquaredDistances(
        euclidean_distances(predicted, observed, squared=True),
        euclidean_distances(predicted, squared=True),
        euclidean_distances(observed, squared=True),
    )


def _energy_distance(squared: _SquaredDistances) -> float:
    between, predicted, observed = (np.sqrt(distances).mean() for distances in squared)
    within = predicted + observed
    return float(2 * between - within)


def _maximum_mean_discrepancy(squared: _SquaredDistances) -> float:
    median = np.median(squared.observed[np.triu_indices(len(squared.observed), 1)])
    # Cells that are all the same have no scale of their own.
    unit = 0.5 * (median or squared.between.mean() or 1.0)
    total = 0.0
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        between, predicted, observed = (
            np.exp(distances / (-2 * factor * unit)).mean() for distances in squared
        )
        total += (observed + predicted - 2 * between) / 5
    return float(total)
