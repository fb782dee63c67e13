"""All measures of a prediction, in the same genes and principal components for every prediction."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from trvae.metrics._coverage import coverage
from trvae.metrics._differential_expression import (
    de_direction,
    de_overlap,
    de_rank_correlation,
    rank_by_magnitude,
    welch_t,
)
from trvae.metrics._distances import energy_distance, maximum_mean_discrepancy
from trvae.metrics._moments import pearson_of_change, r2_of_means, r2_of_variances, rmse_of_means

_N_SPLITS = 5
_MAX_CELLS_FOR_DISTANCE = 2_000


class AllMeasures:
    """The measures of :func:`transfer_metrics`, for log-normalised cells, ``n_cells x n_genes``.

    ``change_of_others`` is the mean change of the other labels, ``n_genes``, if known.
    """

    def __init__(
        self,
        control: np.ndarray,
        observed: np.ndarray,
        change_of_others: np.ndarray | None,
        n_top_genes: int,
        n_pcs: int,
        seed: int,
    ):
        self._control, self._observed = control, observed
        self._n_top_genes, self._seed = n_top_genes, seed
        t = welch_t(control, observed)
        self._top = rank_by_magnitude(t)[:n_top_genes]
        self._weights = t**2 if t.any() else None
        self._specific = None
        if change_of_others is not None:
            unusual = observed.mean(0) - control.mean(0) - change_of_others
            self._specific = rank_by_magnitude(unusual)[:n_top_genes]
        both = np.concatenate([control, observed])
        self._pca = PCA(min(n_pcs, *both.shape), svd_solver="covariance_eigh").fit(both)

    def row(self, predicted: np.ndarray) -> dict[str, float]:
        """Compare predicted cells, ``n_cells x n_genes``, with the observed cells."""
        return self._compare(predicted, self._observed)

    def ceiling(self) -> dict[str, float]:
        """Compare random halves of the observed cells, averaged over splits."""
        rng = np.random.default_rng(self._seed)
        rows = []
        for _ in range(_N_SPLITS):
            half, other_half = np.array_split(rng.permutation(self._observed), 2)
            rows.append(self._compare(half, other_half))
        return pd.DataFrame(rows).mean().to_dict()

    def _compare(self, predicted: np.ndarray, observed: np.ndarray) -> dict[str, float]:
        cells = predicted, observed
        top = predicted[:, self._top], observed[:, self._top]
        projected = self._project(predicted), self._project(observed)
        t = welch_t(self._control, predicted), welch_t(self._control, observed)
        row = {
            "r2_mean": r2_of_means(*cells),
            "r2_variance": r2_of_variances(*cells),
            "r2_mean_top": r2_of_means(*top),
            "r2_variance_top": r2_of_variances(*top),
            "change": pearson_of_change(*cells, self._control),
            "change_top": pearson_of_change(*top, self._control[:, self._top]),
            "rmse": rmse_of_means(*cells),
            "rmse_weighted": rmse_of_means(*cells, self._weights),
            "rmse_specific": float("nan"),
            "energy_distance": energy_distance(*projected),
            "mmd": maximum_mean_discrepancy(*projected),
            "coverage_top": coverage(*top),
            "de_overlap": de_overlap(*t, self._n_top_genes),
            "de_direction": de_direction(*t, self._n_top_genes),
            "de_rank_correlation": de_rank_correlation(*t),
        }
        if self._specific is not None:
            specific = predicted[:, self._specific], observed[:, self._specific]
            row["rmse_specific"] = rmse_of_means(*specific)
        return row

    def _project(self, values: np.ndarray) -> np.ndarray:
        """Principal components, of a random subset if there are too many cells for distances."""
        if len(values) > _MAX_CELLS_FOR_DISTANCE:
            rng = np.random.default_rng(self._seed)
            values = values[rng.permutation(len(values))[:_MAX_CELLS_FOR_DISTANCE]]
        return self._pca.transform(values)
