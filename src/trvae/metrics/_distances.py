"""Distances between two groups of cells."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist

from trvae.module._mmd import multi_scale_mmd


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
    between = cdist(predicted, observed).mean()
    within = cdist(predicted, predicted).mean() + cdist(observed, observed).mean()
    return float(2 * between - within)


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
    2 and 4 times half the median squared distance between observed cells.

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
    median = float(np.median(pdist(observed, "sqeuclidean")))
    y = torch.as_tensor(np.concatenate([predicted, observed]), dtype=torch.float64)
    group = (torch.arange(len(y)) >= len(predicted)).long()
    scales = [0.5 * median * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    return float(multi_scale_mmd(y, group, bandwidths=scales))
