"""What the labels that were measured under two conditions say of a change between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trvae._utils._minimums import MIN_LABELS
from trvae.counterfactual._label_response import (
    TARGET_SUM,
    ResponseOfLabels,
    Weights,
    group_means,
    has_enough_cells,
    log_share,
)
from trvae.counterfactual._left_out import (
    ErrorsOfLabels,
    LeftOut,
    fit_weights,
    linear_left_out,
    log_normalized_after,
    predicted_by_others,
)
from trvae.data._checks import check_obs_column

if TYPE_CHECKING:
    from anndata import AnnData

    from trvae.data._registered import RegisteredData
    from trvae.model._interface import Model


def labels_of_both(model: Model, source: int, target: int) -> np.ndarray:
    """Codes of the labels to learn from, which were measured under both conditions (codes)."""
    means = model._group_means
    if means is None:
        return np.array([], int)
    return np.flatnonzero(has_enough_cells(means.n_cells[:, [source, target]].min(1)))


def response_of_labels(
    model: Model, source: int, target: int, weights: Weights | None = None
) -> ResponseOfLabels | None:
    """Response of the labels measured under both conditions; ``None`` if there are none.

    ``weights`` are by default those that the model was calibrated to, or its own.
    """
    labels, means = labels_of_both(model, source, target), model._group_means
    if means is None or not len(labels):
        return None
    return ResponseOfLabels(
        *means.of_library[labels][:, [source, target]].swapaxes(0, 1),
        weights=weights_of(model, source, target) if weights is None else weights,
        is_counts=model.module.is_count_model,
        limit=np.inf if model.response_limit is None else model.response_limit,
        has_size_factors=model.module.use_size_factor_key,
        decoder_grows=_decoder_grows(model),
    )


def weights_of(model: Model, source: int, target: int) -> Weights:
    """Weights between two conditions: from left-out labels, if the model was calibrated."""
    kept = model.calibration_.get(key_of(source, target))
    if kept is None:
        return default_weights(model)
    left_out = left_out_of(model, source, target)
    return fit_weights(left_out, kept["counts_per_cell"], default_weights(model))


def default_weights(model: Model) -> Weights:
    """Weights of a model that was not calibrated."""
    return Weights(1 - model.linear_weight, model.linear_weight, 0.0)


def left_out_of(model: Model, source: int, target: int) -> LeftOut:
    """What :meth:`TRVAE.calibrate` has kept of labels that were left out."""
    kept = model.calibration_[key_of(source, target)]
    before, change = _before_and_change(model, kept["labels"], source, target)
    is_other = kept["fold"][:, None] != kept["fold"]
    shift = is_other @ change / is_other.sum(1, keepdims=True)
    return LeftOut(before, change, kept["network"], kept["linear"], shift)


def errors_of_labels(
    model: Model, source: int, target: int, counts_per_cell: float | None
) -> ErrorsOfLabels | None:
    """Errors of labels that were left out, of the linear response alone if not calibrated.

    ``None`` if fewer than three labels were measured under both conditions.
    """
    means = model._group_means
    if means is None or len(labels_of_both(model, source, target)) < MIN_LABELS:
        return None
    labels, before, change, predictions = _left_out_predictions(model, source, target)
    n_cells = means.n_cells[labels][:, [source, target]]
    predicted = next(iter(predictions.values()))
    return ErrorsOfLabels(before, change, predicted, n_cells, counts_per_cell)


def table_of_left_out(model: Model, source: int, target: int) -> pd.DataFrame:
    """Errors of each label, by the model's own prediction and by its parts.

    See :meth:`TRVAE.calibrate`: the columns. Without calibration, it is only known of the linear
    response, and the scale is that of 10,000 counts.
    """
    labels, before, change, predictions = _left_out_predictions(model, source, target)
    kept = model.calibration_.get(key_of(source, target))
    scale = TARGET_SUM if model.module.is_count_model else None
    if kept is not None:
        scale = kept["counts_per_cell"]
    observed = log_normalized_after(before, change, scale)
    columns = {}
    for name, predicted_change in predictions.items():
        predicted = log_normalized_after(before, predicted_change, scale)
        columns[f"rmse{name}"] = np.sqrt(np.square(predicted - observed).mean(1))
        columns[f"r2_mean{name}"] = [
            np.corrcoef(*pair)[0, 1] ** 2 for pair in zip(predicted, observed, strict=True)
        ]
    names = [model.registered_data.labels[code] for code in labels]
    return pd.DataFrame(columns, index=pd.Index(names, name="label"))


def profile_of(matrix: Any, library: np.ndarray | None) -> np.ndarray:
    """Mean of cells on the scale on which changes add up, ``n_genes``; see :func:`libraries_of`."""
    one = np.zeros(matrix.shape[0], int)
    means = group_means(matrix, one, one, (1, 1), is_counts=library is not None, library=library)
    profile = means.of_library[0, 0]
    return profile if library is None else log_share(profile)


def libraries_of(model: Model, obs: pd.DataFrame, matrix: Any, source: int) -> np.ndarray | None:
    """Counts of cells over all measured genes, ``n_cells``; ``None`` if they have values.

    Without a column that states them, the modelled genes have the share that they have in other cells of
    the source condition (code).
    """
    if not model.module.is_count_model:
        return None
    key = model.registered_data.arguments.get("library_key")
    if key in obs:
        return obs[key].to_numpy(dtype=float).clip(min=1)
    share = 1.0
    if model._group_means is not None:
        shares = model._group_means.modelled_share[:, source]
        # A model that went on training without this condition knows of none.
        share = float(shares[np.isfinite(shares)].mean()) if np.isfinite(shares).any() else 1.0
    return np.ravel(matrix.sum(1, dtype=float)).clip(min=1) / share


def libraries_of_expected(
    model: Model, library: np.ndarray | None, expected: np.ndarray
) -> np.ndarray | None:
    """Library sizes of expected cells: the cells' own, unless only the decoder changes the sum.

    Measured changes are then those of shares of the modelled genes.
    """
    if not _decoder_grows(model):
        return library
    return expected.sum(1, dtype=float).clip(min=1)


def _decoder_grows(model: Model) -> bool:
    """Whether size factors change a cell's sum, of which measured libraries say nothing."""
    has_libraries = model.registered_data.arguments.get("library_key") is not None
    return model.module.use_size_factor_key and not has_libraries


def counts_per_cell(library: np.ndarray | None) -> float | None:
    """Library size to which log-normalised means are scaled; ``None`` for values."""
    return None if library is None else float(np.median(library))


def key_of(source: int, target: int) -> str:
    """Key of two conditions in ``TRVAE.calibration_``."""
    return f"{source}>{target}"


def _before_and_change(
    model: Model, labels: np.ndarray, source: int, target: int
) -> tuple[np.ndarray, np.ndarray]:
    """Profiles and measured changes, each ``n_labels x n_genes``."""
    assert model._group_means is not None
    profiles = model._group_means.of_library[labels]
    if model.module.is_count_model:
        profiles = log_share(profiles)
    return profiles[:, source], profiles[:, target] - profiles[:, source]


def _left_out_predictions(
    model: Model, source: int, target: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Labels that were left out: codes, profiles, changes, and predictions, the model's first."""
    kept = model.calibration_.get(key_of(source, target))
    if kept is None:
        labels = labels_of_both(model, source, target)
        before, change = _before_and_change(model, labels, source, target)
        predictions = {"_linear": linear_left_out(before, change)}
    else:
        labels, left_out = kept["labels"], left_out_of(model, source, target)
        before, change = left_out.before, left_out.change
        own = predicted_by_others(left_out, kept["counts_per_cell"], default_weights(model))
        predictions = {"": own}
        predictions |= {f"_{name}": getattr(left_out, name) for name in Weights._fields}
    return labels, before, change, predictions | {"_no_change": np.zeros_like(change)}


def groups_of(
    known: RegisteredData, adata: AnnData, groupby: str | None
) -> tuple[np.ndarray, str | None]:
    """Group of each cell as text, and the column with the groups if there is one.

    By default these are labels, of which cells to predict may lack some or all.
    """
    labels_key = known.arguments["labels_key"]
    if groupby is None and labels_key not in adata.obs:
        return np.full(adata.n_obs, f"all {known.cells}"), None
    is_given, groupby = groupby is not None, groupby or labels_key
    column = check_obs_column(adata, "groupby", groupby, complete=is_given)
    column = column.astype(object).where(column.notna(), "unlabelled")
    return column.to_numpy(dtype=str), groupby
