"""All measures of a prediction, in the same genes and principal components for every prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from trvae.metrics._coverage import coverage
from trvae.metrics._differential_expression import (
    de_direction,
    de_overlap,
    de_precision,
    de_rank_correlation,
    de_recall,
    rank_by_magnitude,
    significant_genes,
    welch_test,
)
from trvae.metrics._distances import energy_distance_and_mmd, wasserstein_distance
from trvae.metrics._moments import (
    discrimination,
    pearson_of_change,
    r2_of_means,
    r2_of_variances,
    rmse_of_log_fold_changes,
    rmse_of_means,
)

if TYPE_CHECKING:
    from trvae.metrics._baselines import Centroids

_N_REPLICATES = 5
_MAX_CELLS_FOR_DISTANCE = 2_000
_MAX_CELLS_IN_GENE_SPACE = 1_000
_NOT_KNOWN = float("nan")


class AllMeasures:
    """The measures of :func:`transfer_metrics`, for log-normalised cells, ``n_cells x n_genes``.

    ``others`` are the other labels, if known; ``one_count`` is as in :func:`welch_t`, and
    ``is_natural_log`` says that the values are ``log(1 + x)``.
    """

    def __init__(
        self,
        control: np.ndarray,
        observed: np.ndarray,
        others: Centroids | None,
        n_top_genes: int,
        n_pcs: int,
        seed: int,
        one_count: float = 0.0,
        is_natural_log: bool = True,
    ):
        control, observed = _sorted_by_value(control), _sorted_by_value(observed)
        self._control, self._observed, self._others = control, observed, others
        self._n_top_genes, self._seed = n_top_genes, seed
        self._is_natural_log = is_natural_log
        # Only natural logarithms have a known unit.
        unit = 1.0 if is_natural_log else np.concatenate([control, observed]).var(0).mean()
        self._of_test = one_count, 0.01 * unit or 1.0
        t, _ = welch_test(control, observed, *self._of_test)
        self._top = rank_by_magnitude(t)[:n_top_genes]
        self._weights = t**2 if t.any() else None
        self._specific = None
        if others is not None and len(others.names) > 1:
            self._specific = rank_by_magnitude(others.change.std(0))[:n_top_genes]
        self._axes = self._distance_axes(n_pcs)

    def row(self, predicted: np.ndarray) -> dict[str, float]:
        """Compare predicted cells, ``n_cells x n_genes``, with the observed cells."""
        return self._compare(_sorted_by_value(predicted), self._observed)

    def replicates(self) -> pd.DataFrame:
        """Compare two independent samples of the observed cells: a row for each pair of samples.

        One has as many cells as the control, from which a prediction is made, and the other as many
        as were observed; both are drawn with replacement, so that they differ as two experiments do.
        """
        rng = np.random.default_rng(self._seed)
        sizes = len(self._control), len(self._observed)
        rows = [
            self._compare(*(_resampled(self._observed, rng, size) for size in sizes))
            for _ in range(_N_REPLICATES)
        ]
        return pd.DataFrame(rows)

    def standard_errors(self, predicted: np.ndarray, n_bootstrap: int) -> pd.Series:
        """Bootstrap over the cells: standard deviation of each measure between resamples."""
        rng = np.random.default_rng(self._seed)
        cells = _sorted_by_value(predicted), self._observed
        rows = [
            self._compare(*(_resampled(group, rng, len(group)) for group in cells))
            for _ in range(n_bootstrap)
        ]
        return pd.DataFrame(rows).std()

    def _compare(self, predicted: np.ndarray, observed: np.ndarray) -> dict[str, float]:
        cells = predicted, observed
        top = predicted[:, self._top], observed[:, self._top]
        subsets = [self._subset(group) for group in cells]
        projected = [subset @ self._axes for subset in subsets]
        subsets = [subset[:_MAX_CELLS_IN_GENE_SPACE] for subset in subsets]
        top_subsets = [subset[:, self._top] for subset in subsets]
        spaces = {"": projected, "_genes": subsets, "_top": top_subsets}
        distances = {space: energy_distance_and_mmd(*groups) for space, groups in spaces.items()}
        of_predicted, of_observed = (
            welch_test(self._control, group, *self._of_test) for group in cells
        )
        t = of_predicted[0], of_observed[0]
        signs = [
            np.sign(test[0]) * significant_genes(*test) for test in (of_predicted, of_observed)
        ]
        return {
            "r2_mean": r2_of_means(*cells),
            "r2_variance": r2_of_variances(*cells),
            "r2_mean_top": r2_of_means(*top),
            "r2_variance_top": r2_of_variances(*top),
            "change": pearson_of_change(*cells, self._control),
            "change_top": pearson_of_change(*top, self._control[:, self._top]),
            **self._against_other_labels(predicted, observed),
            "rmse": rmse_of_means(*cells),
            "rmse_weighted": rmse_of_means(*cells, self._weights),
            "rmse_log_fold_change": rmse_of_log_fold_changes(*cells)
            if self._is_natural_log
            else _NOT_KNOWN,
            "wasserstein": wasserstein_distance(*cells),
            **{f"energy_distance{space}": energy for space, (energy, _) in distances.items()},
            **{f"mmd{space}": mmd for space, (_, mmd) in distances.items()},
            "coverage_top": coverage(*top),
            "de_overlap": de_overlap(*t, self._n_top_genes),
            "de_precision": de_precision(*signs),
            "de_recall": de_recall(*signs),
            "de_direction": de_direction(*t, int(np.count_nonzero(signs[1]))),
            "de_rank_correlation": de_rank_correlation(*t),
        }

    def _against_other_labels(
        self, predicted: np.ndarray, observed: np.ndarray
    ) -> dict[str, float]:
        """Measures of what is the label's own in its response."""
        row = dict.fromkeys(("change_specific", "discrimination", "rmse_specific"), _NOT_KNOWN)
        if self._others is None:
            return row
        before, changes = self._control.mean(0), self._others.change
        row["change_specific"] = pearson_of_change(
            predicted, observed, self._control + changes.mean(0)
        )
        row["discrimination"] = discrimination(
            predicted.mean(0) - before, observed.mean(0) - before, changes
        )
        if self._specific is not None:
            row["rmse_specific"] = rmse_of_means(
                predicted[:, self._specific], observed[:, self._specific]
            )
        return row

    def _distance_axes(self, n_pcs: int) -> np.ndarray:
        """Directions in which distances are measured, ``n_genes x n_axes``."""
        own = np.concatenate([self._control, self._observed])
        # Few cells have components of their own noise, in which a new sample of them would be far
        # off, and what is made from the control near. Other labels have no part in that noise.
        cells = own if self._others is None else self._others.cells
        # Shares of a variance of 0, which nothing uses, are not defined.
        with np.errstate(invalid="ignore"):
            pca = PCA(min(n_pcs, *cells.shape), svd_solver="covariance_eigh").fit(cells)
        # Other labels need not show the direction in which these cells change.
        change = self._observed.mean(0) - self._control.mean(0)
        beyond = change - change @ pca.components_.T @ pca.components_
        length = np.linalg.norm(beyond)
        is_within = length <= 1e-9 * np.linalg.norm(change)
        more = [] if is_within else [beyond / length]
        return np.array([*pca.components_, *more]).T

    def _subset(self, values: np.ndarray) -> np.ndarray:
        """A random subset if there are too many cells for distances between all of them."""
        rng = np.random.default_rng(self._seed)
        return values[rng.permutation(len(values))[:_MAX_CELLS_FOR_DISTANCE]]


def _sorted_by_value(cells: np.ndarray) -> np.ndarray:
    """Sort cells by their values, so that what is drawn of them doesn't depend on their order."""
    direction = np.random.default_rng(0).normal(size=cells.shape[1])
    return cells[np.argsort(cells @ direction, kind="stable")]


def _resampled(cells: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    return cells[rng.integers(0, len(cells), n)]
