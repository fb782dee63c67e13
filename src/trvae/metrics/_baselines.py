"""What a sceptic would predict without any model. All values are log-normalised."""

from __future__ import annotations

import numpy as np

Centroids = dict[str, tuple[np.ndarray, np.ndarray]]
"""Mean of each label's source and target cells, each ``n_genes``."""


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
    return {
        name: (values[here & is_source].mean(0), values[here & is_target].mean(0))
        for name in np.unique(label)
        for here in [label == name]
        if (here & is_source).any() and (here & is_target).any()
    }


def mean_shift(control: np.ndarray, others: Centroids) -> np.ndarray:
    """Control cells plus the mean change over the other labels, each label counting once."""
    change = np.mean([target - source for source, target in others.values()], axis=0)
    return _shifted(control, change)


def nearest_shift(control: np.ndarray, others: Centroids) -> tuple[np.ndarray, str]:
    """Control cells plus the change of the label whose control mean is closest, and its name."""
    center = control.mean(0)
    nearest = min(others, key=lambda name: float(np.linalg.norm(others[name][0] - center)))
    source, target = others[nearest]
    return _shifted(control, target - source), nearest


def _shifted(control: np.ndarray, change: np.ndarray) -> np.ndarray:
    """No value falls below the smallest there is (0, unless the data are centred)."""
    return np.maximum(control + change, min(control.min(), 0.0))
