"""Hold treated cells out, predict them, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trvae._data import check_obs_column, join_names
from trvae._model import TRVAE
from trvae.metrics._transfer_metrics import TransferComparison

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


class HeldOutPrediction(NamedTuple):
    """A model that never saw the treated cells of one label, and what it says of them."""

    model: TRVAE
    control: AnnData
    """The label's cells under the source condition."""
    observed: AnnData
    """The held-out cells."""
    predicted: AnnData
    """``control`` transferred to the target condition."""
    metrics: pd.DataFrame
    """As :func:`trvae.metrics.transfer_metrics` returns them."""


def predict_held_out(
    adata: AnnData,
    *,
    condition_key: str,
    labels_key: str,
    label: Any,
    source_condition: Any,
    target_condition: Any,
    layer: str | None = None,
    library_key: str | None = None,
    seed: int = 0,
    model_kwargs: dict | None = None,
    train_kwargs: dict | None = None,
) -> HeldOutPrediction:
    """Train without one label's cells under one condition, and predict these from the others.

    Parameters
    ----------
    adata
        All cells. Genes should have been chosen without the cells that are held out.
    condition_key, labels_key
        Columns of ``obs``.
    label
        The label whose cells under ``target_condition`` are held out.
    source_condition
        The condition that they are predicted from.
    target_condition
        The condition that is predicted.
    layer
        Layer with the counts or log-normalised values, by default ``X``.
    library_key
        As in :func:`trvae.metrics.transfer_metrics`.
    seed
        Seed of training, prediction and comparison.
    model_kwargs
        Passed to :class:`~trvae.TRVAE`.
    train_kwargs
        Passed to :meth:`trvae.TRVAE.train`.

    Raises
    ------
    ValueError
        If a column, label or condition is not in ``adata``, or the prediction could not be
        compared, as in :func:`trvae.metrics.transfer_metrics`.
    """
    labels = check_obs_column(adata, "labels_key", labels_key)
    conditions = check_obs_column(adata, "condition_key", condition_key)
    _check_occurs("label", label, labels)
    _check_occurs("source_condition", source_condition, conditions)
    _check_occurs("target_condition", target_condition, conditions)
    is_label = (labels == label).to_numpy()
    held_out = is_label & (conditions == target_condition).to_numpy()
    sources = is_label & (conditions == source_condition).to_numpy()
    for condition, cells in {source_condition: sources, target_condition: held_out}.items():
        if not cells.any():
            raise ValueError(f"There are no cells of {label!r} under {condition!r}.")

    train, control = adata[~held_out].copy(), adata[sources].copy()
    observed = adata[held_out].copy()
    TRVAE.setup_anndata(train, condition_key=condition_key, labels_key=labels_key, layer=layer)
    model = TRVAE(train, seed=seed, **(model_kwargs or {}))
    # Made now, so that what could not be compared is known before the training.
    comparison = TransferComparison(
        observed,
        control,
        reference=train,
        condition_key=condition_key,
        labels_key=labels_key,
        source_condition=source_condition,
        target_condition=target_condition,
        layer=layer,
        library_key=library_key,
        seed=seed,
    )
    model.train(**(train_kwargs or {}))
    predicted = model.transfer(control, target_condition, seed=seed)
    metrics = comparison.table(predicted)
    return HeldOutPrediction(model, control, observed, predicted, metrics)


def _check_occurs(argument: str, given: Any, column: pd.Series) -> None:
    if not (column == given).any():
        raise ValueError(
            f"{argument} {given!r} is not in adata.obs[{column.name!r}]: "
            f"{join_names(column.unique())}."
        )
