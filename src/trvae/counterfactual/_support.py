"""How close cells lie to reference cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors


def balanced_sample(groups: np.ndarray, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Sample cells, as many of each group as possible.

    Parameters
    ----------
    groups
        Group of each cell, ``n``.
    n_cells
        Maximal number of cells to sample.
    rng
        Random number generator.

    Returns
    -------
    Positions of the sampled cells, ascending.
    """
    order = rng.permutation(len(groups))
    place_in_group = pd.Series(order).groupby(groups[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(place_in_group, kind="stable")[:n_cells]])


def support_of_cells(
    z: np.ndarray, reference: np.ndarray, n_neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""How far cells lie from reference cells, and how unusual that distance is.

    Parameters
    ----------
    z
        Latent representation of the cells, ``n_cells x n_latent``.
    reference
        Latent representation of at least two reference cells, ``n_reference x n_latent``.
    n_neighbors
        Number of nearest reference cells whose mean Euclidean distance counts.

    Returns
    -------
    Two arrays, ``n_cells``: the distance to the reference cells, in units of the median distance
    of reference cells to each other; and a conformal p-value, the share of reference cells that
    lie at least as far from the others, with the cell itself included.

    References
    ----------
    Ishimtsev, Bernstein, Burnaev & Nazarov, *PMLR* 60 (2017): a conformal anomaly detector with
    the distance to the nearest neighbours as nonconformity measure.
    """
    n_neighbors = min(n_neighbors, len(reference) - 1)
    neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(reference)
    # Without arguments, no reference cell is its own neighbour.
    usual = np.sort(neighbors.kneighbors()[0].mean(1))
    distance = neighbors.kneighbors(z)[0].mean(1)
    n_farther = len(usual) - np.searchsorted(usual, distance, side="left")
    return distance / max(np.median(usual), 1e-12), (n_farther + 1) / (len(usual) + 1)
