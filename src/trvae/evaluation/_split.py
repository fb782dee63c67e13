"""Hold out one label's cells under one condition, predict them, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from trvae._utils._arguments import join_names
from trvae._utils._minimums import MIN_CELLS
from trvae.data._cells import unregistered
from trvae.data._checks import check_obs_column, get_matrix
from trvae.metrics._comparison import TransferComparison
from trvae.metrics._normalize import is_counts, library_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.evaluation._methods import TransferMethod


class HeldOut(NamedTuple):
    """Cells split for a prediction, and what it is compared with."""

    train: AnnData
    """All cells except the held-out ones."""
    control: AnnData
    """The label's cells under the source condition."""
    observed: AnnData
    """The held-out cells."""
    comparison: TransferComparison
    keys: dict[str, Any]
    """Keyword arguments of :meth:`TransferMethod.fit`: columns and layer to use."""


def hold_out(
    adata: AnnData,
    *,
    condition_key: str,
    labels_key: str,
    label: Any,
    source_condition: Any,
    target_condition: Any,
    layer: str | None = None,
    library_key: str | None = None,
    normalize: bool = True,
    n_genes: int | None = None,
    n_top_genes: int = 100,
    n_bootstrap: int = 0,
) -> HeldOut:
    """Split off one label's cells under one condition.

    Whatever prevents a comparison is found here, before any training.

    Parameters
    ----------
    label, target_condition
        The cells to hold out.
    adata, condition_key, labels_key, source_condition, layer, library_key, normalize
        See :func:`evaluate`: the cells and how to read them.
    n_genes, n_top_genes, n_bootstrap
        See :func:`evaluate`: numbers of genes to use and to report separately, and of resamples.

    Raises
    ------
    ValueError
        As :func:`evaluate`, or if there are fewer than ``n_genes`` genes.
    """
    labels = check_obs_column(adata, "labels_key", labels_key)
    conditions = check_obs_column(adata, "condition_key", condition_key)
    pairs_to_hold_out(labels, conditions, source_condition, [label], [target_condition])
    is_label = (labels == label).to_numpy()
    held_out = is_label & (conditions == target_condition).to_numpy()
    sources = is_label & (conditions == source_condition).to_numpy()
    genes: Any = slice(None)
    library = None
    if n_genes is not None:
        genes = _variable_genes(adata[~held_out], n_genes, layer)
        if normalize and library_key is None and is_counts(get_matrix(adata, layer)):
            library_key = "_library_size"
            # Of empty cells as without n_genes.
            library = library_sizes(adata, layer, None).clip(min=1)
    groups = (~held_out, sources, held_out)
    train, control, observed = (unregistered(adata[cells, genes].copy()) for cells in groups)
    if library is not None:
        for part, cells in zip((train, control, observed), groups, strict=True):
            part.obs[library_key] = library[cells]
    keys: dict[str, Any] = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "layer": layer,
        "library_key": library_key,
    }
    comparison = TransferComparison(
        observed,
        control,
        reference=train,
        source_condition=source_condition,
        target_condition=target_condition,
        normalize=normalize,
        n_top_genes=n_top_genes,
        n_bootstrap=n_bootstrap,
        **keys,
    )
    return HeldOut(train, control, observed, comparison, keys)


def predict_held_out(
    split: HeldOut, method: TransferMethod, target_condition: Any, seed: int
) -> tuple[AnnData, pd.DataFrame]:
    """Fit a method, and return the predicted cells and how they compare with the held-out ones."""
    # Methods may modify the cells they are given.
    method.fit(split.train.copy(), seed=seed, **split.keys)
    predicted = method.transfer(split.control.copy(), target_condition, seed=seed)
    if not isinstance(predicted, AnnData):
        raise ValueError(
            f"{type(method).__name__}.transfer must return an AnnData, got a "
            f"{type(predicted).__name__}."
        )
    return predicted, split.comparison.table(predicted)


def pairs_to_hold_out(
    labels: pd.Series,
    conditions: pd.Series,
    source_condition: Any,
    chosen_labels: Sequence[Any] | None,
    chosen_targets: Sequence[Any] | None,
) -> list[tuple[Any, Any]]:
    """Return the pairs of label and target condition to hold out, in this order.

    By default these are all other conditions, and all labels with enough cells under both, if another
    label has cells under both, too.
    """
    source_condition = value_in("source_condition", source_condition, conditions)
    # A column of type category has counts of unused categories, too.
    counts = pd.crosstab(labels.astype(object), conditions.astype(object))
    targets = [target for target in counts.columns if target != source_condition]
    if chosen_targets is not None:
        known = (value_in("target_condition", target, conditions) for target in chosen_targets)
        targets = list(dict.fromkeys(known))
        if source_condition in targets:
            raise ValueError(
                f"target_conditions has the source condition {source_condition!r}, whose cells are "
                "predicted from."
            )
    if chosen_labels is None:
        is_enough = counts >= MIN_CELLS
        pairs = [
            (label, target)
            for target in targets
            for label in counts.index[is_enough[source_condition] & is_enough[target]]
            if _has_others(counts, label, source_condition, target)
        ]
        if not pairs:
            raise ValueError(
                f"No label has {MIN_CELLS} cells under {source_condition!r} and under another "
                "condition, under which another label was measured, too."
            )
    else:
        known = (value_in("label", label, labels) for label in chosen_labels)
        chosen_labels = list(dict.fromkeys(known))
        pairs = [(label, target) for target in targets for label in chosen_labels]
    for label, target in pairs:
        _check_pair(counts, label, source_condition, target)
    return pairs


def _check_pair(counts: pd.DataFrame, label: Any, source: Any, target: Any) -> None:
    """Raise a ``ValueError`` unless the label, and another one, have cells under both conditions."""
    for condition in (source, target):
        n_cells = counts.loc[label, condition]
        if n_cells < 2:
            raise ValueError(
                f"{label!r} has {n_cells} cells under {condition!r}; 2 or more are needed to hold it "
                "out."
            )
    if not _has_others(counts, label, source, target):
        raise ValueError(
            f"No label but {label!r} has cells under both {source!r} and {target!r}, from which its "
            "response could be predicted."
        )


def _has_others(counts: pd.DataFrame, label: Any, source: Any, target: Any) -> bool:
    """Whether another label has cells under both conditions."""
    others = counts.drop(index=label)
    # Boolean conditions would select rows: others[[source, target]].
    return bool(((others[source] > 0) & (others[target] > 0)).any())


def value_in(argument: str, value: Any, column: pd.Series) -> Any:
    """Return the column's own value that equals this one, such as 0 for ``False``.

    Raises a ``ValueError`` if there is none.
    """
    own = column.astype(object)[column == value]
    if own.empty:
        raise ValueError(
            f"{argument} {value!r} is not in adata.obs[{column.name!r}]: "
            f"{join_names(column.unique())}."
        )
    return own.iloc[0]


def _variable_genes(train: AnnData, n_genes: int, layer: str | None) -> np.ndarray:
    """Return a mask of the most variable genes of the cells to train on."""
    if n_genes > train.n_vars:
        raise ValueError(f"n_genes={n_genes}, but there are only {train.n_vars} genes.")
    cells = AnnData(get_matrix(train, layer).copy(), var=train.var[[]])
    if is_counts(cells.X):
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=n_genes)
    return cells.var["highly_variable"].to_numpy()
