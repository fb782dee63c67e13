"""Model-free baselines, from the responses of the other labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trvae.counterfactual._draws import random_tails
from trvae.counterfactual._label_response import (
    LinearResponse,
    has_enough_cells,
    log_share,
    share_of_log,
)
from trvae.counterfactual._residual import draw_counts

LINEAR_COUNTS = "linear counts"

BASELINES = (
    "no change",
    "mean shift",
    "cell-weighted shift",
    "nearest shift",
    "linear shift",
    LINEAR_COUNTS,
)
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
    """Average ``values`` (``n_cells x n_genes``) of each label that has enough cells of both conditions."""
    names = np.intersect1d(label[is_source], label[is_target])
    cells_of = label == names[:, None]
    n_source, n_target = ((cells_of & group).sum(1) for group in (is_source, is_target))
    enough = has_enough_cells(np.minimum(n_source, n_target))
    names, cells_of = names[enough], cells_of[enough]
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
        "linear shift": LinearResponse(others.source, others.change).change(profile[None])[0],
    }
    lowest = min(control.min(), 0.0)
    return {name: np.maximum(control + shift, lowest) for name, shift in changes.items()}


def linear_counts(
    counts: np.ndarray, library: np.ndarray, keys: np.ndarray, others: Centroids, seed: int
) -> np.ndarray:
    """Predict by thinning the control's counts and adding Poisson counts, without a network.

    Parameters
    ----------
    counts
        Counts of the control cells, ``n_cells x n_genes``.
    library
        Library size of each, ``n_cells``.
    keys, seed
        See :func:`random_tails`: keys of the cells, and a seed.
    others
        Means of the shares of the library, not of log-normalised values.

    Returns
    -------
    Counts, ``n_cells x n_genes``.
    """
    before = (counts / library[:, None]).mean(0)
    profiles = log_share(others.source)
    linear = LinearResponse(profiles, log_share(others.target) - profiles)
    after = share_of_log(log_share(before) + linear.change(log_share(before)[None])[0])
    rates = [torch.from_numpy(library[:, None] * shares) for shares in (before, after)]
    tails = random_tails(keys, seed, counts.shape[1])
    return draw_counts(torch.from_numpy(counts), rates[0], rates[1], None, tails).numpy()
