"""Baselines and a replicate, with which any number of predictions of the same cells are compared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trvae._utils._arguments import POSITIVE_INTEGER, SEED, check_arguments, integer
from trvae._utils._matrices import dense
from trvae.counterfactual._draws import cell_keys
from trvae.data._cells import loaded
from trvae.data._checks import check_obs_column, get_matrix
from trvae.metrics._all_measures import AllMeasures
from trvae.metrics._baselines import (
    BASELINES,
    LINEAR_COUNTS,
    REPLICATE,
    Centroids,
    centroids,
    linear_counts,
    shifted_cells,
)
from trvae.metrics._comparable import check_comparable, check_logarithms
from trvae.metrics._normalize import (
    is_counts,
    library_sizes,
    log_normalized,
    log_of_counts,
    median_library_size,
    stated_base,
)

if TYPE_CHECKING:
    from anndata import AnnData

_RULES = {
    "n_top_genes": POSITIVE_INTEGER,
    "n_pcs": POSITIVE_INTEGER,
    "n_bootstrap": integer("0, or an integer from 2 on", lambda n: n == 0 or n > 1),
    "seed": SEED,
}


class TransferComparison:
    """The rows of :func:`transfer_metrics` that don't depend on the prediction.

    Parameters
    ----------
    observed, control, **kwargs
        See :func:`transfer_metrics`: the cells to compare with, and how.

    Raises
    ------
    ValueError
        See :func:`transfer_metrics`: if the cells can't be compared.
    """

    def __init__(
        self,
        observed: AnnData,
        control: AnnData,
        *,
        reference: AnnData | None,
        condition_key: str | None,
        labels_key: str | None,
        source_condition: Any,
        target_condition: Any,
        layer: str | None,
        library_key: str | None,
        normalize: bool = True,
        n_top_genes: int = 100,
        n_pcs: int = 30,
        n_bootstrap: int = 0,
        seed: int = 0,
    ):
        check_arguments(locals(), _RULES)
        if library_key is not None and not normalize:
            raise ValueError(f"library_key={library_key!r} has no effect with normalize=False.")
        control, observed = loaded(control), loaded(observed)
        reference = None if reference is None else loaded(reference)
        self._groups = {"observed": observed, "control": control}
        trained_on = {} if reference is None else {"reference": reference}
        self._keys = {"layer": layer, "library_key": library_key}
        self._normalize = normalize
        check_comparable(self._groups | trained_on, normalize=normalize, **self._keys)
        self._target_sum = None
        if normalize:
            compared = control[:, observed.var_names]
            check_logarithms(compared, layer)
            self._target_sum = median_library_size(compared, **self._keys)
        before = self._values(control)
        predictions = {"no change": before}
        others = None
        self._nearest: str | None = None
        learnt_from = [get_matrix(cells, layer) for cells in (control, *trained_on.values())]
        counted = LINEAR_COUNTS in baselines_of(*learnt_from, normalize=normalize)
        if reference is not None:
            named = condition_key, labels_key, source_condition, target_condition
            groups, values = _other_labels(reference, control, *named), self._values(reference)
            others = centroids(values, *groups)
            predictions |= shifted_cells(before, others)
            if counted:
                shares = centroids(np.expm1(values) / self._target_sum, *groups)
                predictions[LINEAR_COUNTS] = self._linear_counts(control, shares, seed)
            self._nearest = others.names[others.nearest(before.mean(0))]
        self._measures = AllMeasures(
            before,
            self._values(observed),
            others,
            n_top_genes,
            n_pcs,
            seed,
            # Of a cell with the median library size, which all are scaled to.
            one_count=np.log(2) if counted else 0.0,
            is_natural_log=normalize and (counted or stated_base(observed) in (None, math.e)),
        )
        self._n_bootstrap = n_bootstrap
        self.rows = {name: self._row(values) for name, values in predictions.items()}
        """Measures of the baselines and the replicate, by name."""
        replicates = self._measures.replicates()
        self.rows[REPLICATE] = replicates.mean().to_dict()
        if n_bootstrap:
            self.rows[REPLICATE] |= replicates.std().add_suffix("_se").to_dict()

    def table(self, predicted: AnnData) -> pd.DataFrame:
        """Compare a prediction: the result of :func:`transfer_metrics`."""
        predicted = loaded(predicted)
        cells = {"predicted": predicted, **self._groups}
        check_comparable(cells, normalize=self._normalize, **self._keys)
        rows = {"prediction": self._row(self._values(predicted)), **self.rows}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
        table.attrs["nearest"] = self._nearest
        return table

    def _row(self, predicted: np.ndarray) -> dict[str, float]:
        row = self._measures.row(predicted)
        if self._n_bootstrap:
            errors = self._measures.standard_errors(predicted, self._n_bootstrap)
            row |= errors.add_suffix("_se").to_dict()
        return row

    def _linear_counts(self, control: AnnData, others: Centroids, seed: int) -> np.ndarray:
        cells = control[:, self._groups["observed"].var_names]
        counts = dense(get_matrix(cells, self._keys["layer"])).astype(float)
        library = library_sizes(cells, **self._keys).clip(min=1)
        drawn = linear_counts(counts, library, cell_keys(cells.obs_names), others, seed)
        return log_of_counts(drawn, library, self._target_sum)

    def _values(self, adata: AnnData) -> np.ndarray:
        """The values to compare, ``n_cells x n_genes``, with the genes of the observed cells."""
        cells = adata[:, self._groups["observed"].var_names]
        if not self._normalize:
            return dense(get_matrix(cells, self._keys["layer"])).astype(float)
        return log_normalized(cells, target_sum=self._target_sum, **self._keys)


def baselines_of(*matrices: Any, normalize: bool) -> list[str]:
    """Names of the baselines for cells with these values: one of them changes counts."""
    counted = normalize and all(map(is_counts, matrices))
    return [name for name in BASELINES if name != LINEAR_COUNTS or counted]


def _other_labels(
    reference: AnnData,
    control: AnnData,
    condition_key: str | None,
    labels_key: str | None,
    source: Any,
    target: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the reference's cells, and which are other labels' under source and target."""
    if condition_key is None or labels_key is None or source is None or target is None:
        raise ValueError(
            "With a reference, condition_key, labels_key, source_condition and target_condition "
            "are needed as well."
        )
    own_labels = check_obs_column(control, "labels_key", labels_key).unique()
    column = check_obs_column(reference, "labels_key", labels_key)
    condition = check_obs_column(reference, "condition_key", condition_key)
    label, is_other = column.to_numpy().astype(str), ~column.isin(own_labels)
    is_source, is_target = (
        (is_other & (condition == name)).to_numpy(dtype=bool) for name in (source, target)
    )
    if not len(np.intersect1d(label[is_source], label[is_target])):
        raise ValueError(
            f"reference has no other label with cells of both {source!r} and {target!r} in "
            f"obs[{condition_key!r}], from which the baselines could learn."
        )
    return label, is_source, is_target
