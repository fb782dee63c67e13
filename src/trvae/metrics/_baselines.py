"""Model-free baselines, from the responses of the other labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trvae.counterfactual._label_response import MIN_LABELS, LinearResponse

BASELINES = ("no change", "mean shift", "cell-weighted shift", "nearest shift", "linear shift")
"""Rows of a comparison with a reference, beside the prediction and the replicate."""

REPLICATE = "replicate"
"""Row of a comparison: another sample of the observed cells."""


class Centroids(NamedTuple):
    """Mean log-normalised expression of labels that were measured under both conditions."""

    names: list[str]
    source: np.ndarray
    """``n_labels x n_genes``."""
    target: np.ndarray
    """``n_labels x n_genes``."""
    n_cells: np.ndarray
    """Number of cells under both conditions together, ``n_labels``."""
    cells: np.ndarray
    """Those cells, ``n_cells x n_genes``."""

    @property
    def change(self) -> np.ndarray:
        """``n_labels x n_genes``."""
        return self.target - self.source

    def nearest(self, profile: np.ndarray) -> int:
        """Position of the label whose source mean is closest to a profile, ``n_genes``."""
        return int(np.argmin(np.linalg.norm(self.source - profile, axis=1)))


def centroids(
    values: np.ndarray, label: np.ndarray, is_source: np.ndarray, is_target: np.ndarray
) -> Centroids:
    """Average ``values`` (``n_cells x n_genes``) of each label that has cells of both conditions."""
    names = np.intersect1d(label[is_source], label[is_target])
    cells_of = [label == name for name in names]
    source, target = (
        np.array([values[cells & condition].mean(0) for cells in cells_of])
        for condition in (is_source, is_target)
    )
    is_either = is_source | is_target
    n_cells = np.array([(cells & is_either).sum() for cells in cells_of])
    cells = values[is_either & np.isin(label, names)]
    return Centroids(names.tolist(), source, target, n_cells, cells)


def shifted_cells(control: np.ndarray, others: Centroids) -> dict[str, np.ndarray]:
    """Predict by each baseline, ``n_cells x n_genes``: control plus the change of other labels.

    No value falls below 0, or below the smallest control value if that is negative.
    """
    profile, change = control.mean(0), others.change
    changes = {
        "mean shift": change.mean(0),
        "cell-weighted shift": np.average(change, axis=0, weights=others.n_cells),
        "nearest shift": change[others.nearest(profile)],
        "linear shift": _linear_change(profile, others),
    }
    lowest = min(control.min(), 0.0)
    return {name: np.maximum(control + shift, lowest) for name, shift in changes.items()}


def _linear_change(profile: np.ndarray, others: Centroids) -> np.ndarray:
    """Change predicted from the control mean by ridge regression, or the mean change."""
    if len(others.names) < MIN_LABELS:
        return others.change.mean(0)
    return LinearResponse(others.source, others.target).change(profile[None])[0]
