"""What a sceptic would predict without any model. All values are log-normalised."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trvae.counterfactual._label_response import MIN_LABELS, LinearResponse


class Centroids(NamedTuple):
    """Means of the labels that were measured under both conditions."""

    names: list[str]
    source: np.ndarray
    """``n_labels x n_genes``."""
    target: np.ndarray
    """``n_labels x n_genes``."""
    n_cells: np.ndarray
    """Cells under both conditions together, ``n_labels``."""

    @property
    def change(self) -> np.ndarray:
        """``n_labels x n_genes``."""
        return self.target - self.source


def centroids(
    values: np.ndarray, label: np.ndarray, is_source: np.ndarray, is_target: np.ndarray
) -> Centroids:
    """Means of the labels that were measured under both conditions.

    Parameters
    ----------
    values
        ``n_cells x n_genes``.
    label
        Each cell's label, ``n_cells``.
    is_source, is_target
        Whether a cell was measured under the source or target condition, ``n_cells``.
    """
    names = [
        name
        for name in np.unique(label)
        if (is_source & (label == name)).any() and (is_target & (label == name)).any()
    ]

    def means(cells):
        rows = [values[cells & (label == name)].mean(0) for name in names]
        return np.reshape(rows, (len(names), values.shape[1]))

    counted = is_source | is_target
    n_cells = np.array([(counted & (label == name)).sum() for name in names])
    return Centroids(names, means(is_source), means(is_target), n_cells)


def mean_shift(control: np.ndarray, others: Centroids) -> np.ndarray:
    """Control cells plus the mean change over the other labels, each label counting once."""
    return _shifted(control, others.change.mean(0))


def cell_weighted_shift(control: np.ndarray, others: Centroids) -> np.ndarray:
    """Control cells plus the mean change over the other labels, each counting as its cells."""
    return _shifted(control, np.average(others.change, axis=0, weights=others.n_cells))


def nearest_shift(control: np.ndarray, others: Centroids) -> tuple[np.ndarray, str]:
    """Control cells plus the change of the label whose control mean is closest, and its name."""
    nearest = int(np.argmin(np.linalg.norm(others.source - control.mean(0), axis=1)))
    return _shifted(control, others.change[nearest]), others.names[nearest]


def linear_shift(control: np.ndarray, others: Centroids) -> np.ndarray:
    """Control cells plus the change that a ridge regression predicts from the control mean.

    The regression is of the other labels' changes on their control means, see
    :class:`~trvae._linear_response.LinearResponse`. With fewer than three labels it is
    :func:`mean_shift`.
    """
    if len(others.names) < MIN_LABELS:
        return mean_shift(control, others)
    response = LinearResponse(others.source, others.target)
    return _shifted(control, response.change(control.mean(0, keepdims=True))[0])


def _shifted(control: np.ndarray, change: np.ndarray) -> np.ndarray:
    """No value falls below the smallest there is (0, unless the data are centred)."""
    return np.maximum(control + change, min(control.min(), 0.0))
