"""Holding out one label's cells under one condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from trvae._utils._arguments import join_names
from trvae.data._checks import check_obs_column, get_matrix
from trvae.evaluation._methods import TransferMethod
from trvae.metrics._comparison import TransferComparison
from trvae.metrics._normalize import is_counts

if TYPE_CHECKING:
    pass


class HeldOut(NamedTuple):
    """A split of the data, and all that a prediction is compared with."""

    train: AnnData
    """All cells but those to be predicted."""
    control: AnnData
    """The label's cells under the source condition."""
    observed: AnnData
    """The held-out cells."""
    comparison: TransferComparison
    keys: dict[str, Any]
    """Where in the cells things are, as :meth:`TransferMethod.fit` takes it."""


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
) -> HeldOut:
    """Split off one label's cells under one condition.

    What can't be compared is known here, before any training.

    Parameters
    ----------
    label
        The label whose cells under ``target_condition`` are held out.
    target_condition
        The condition that is predicted.
    adata, condition_key, labels_key, source_condition, layer, library_key, normalize
        As in :func:`evaluate`.
    n_genes, n_top_genes
        As in :func:`evaluate`.

    Returns
    -------
    The split; no cell is shared with ``adata``.

    Raises
    ------
    ValueError
        As :func:`evaluate`.
    """
    labels = check_obs_column(adata, "labels_key", labels_key)
    conditions = check_obs_column(adata, "condition_key", condition_key)
    check_occurs("label", label, labels)
    check_occurs("source_condition", source_condition, conditions)
    check_occurs("target_condition", target_condition, conditions)
    is_label = (labels == label).to_numpy()
    held_out = is_label & (conditions == target_condition).to_numpy()
    sources = is_label & (conditions == source_condition).to_numpy()
    for condition, cells in {source_condition: sources, target_condition: held_out}.items():
        if not cells.any():
            raise ValueError(f"There are no cells of {label!r} under {condition!r}.")

    if n_genes is not None:
        chosen = _with_variable_genes(adata, held_out, n_genes, layer)
        if normalize and library_key is None and is_counts(get_matrix(adata, layer)):
            library_key = "_library_size"
            chosen.obs[library_key] = np.ravel(get_matrix(adata, layer).sum(1))
        adata = chosen
    train, control = adata[~held_out].copy(), adata[sources].copy()
    observed = adata[held_out].copy()
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
        normalize=normalize,
        n_top_genes=n_top_genes,
    )
    keys = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "layer": layer,
        "library_key": library_key,
    }
    return HeldOut(train, control, observed, comparison, keys)


def predict_held_out(
    split: HeldOut, method: TransferMethod, target_condition: Any, seed: int
) -> tuple[AnnData, pd.DataFrame]:
    """Fit a method, and return what it predicts and how that compares with the held-out cells.

    Parameters
    ----------
    split
        As :func:`hold_out` returns it.
    method
        The method, not fitted yet.
    target_condition
        The condition that is predicted.
    seed
        Seed of everything that is drawn.
    """
    # Copies, as methods may write to what they are given.
    method.fit(split.train.copy(), seed=seed, **split.keys)
    predicted = method.transfer(split.control.copy(), target_condition, seed=seed)
    return predicted, split.comparison.table(predicted)


def _with_variable_genes(
    adata: AnnData, held_out: np.ndarray, n_genes: int, layer: str | None
) -> AnnData:
    """Return the cells with as many highly variable genes, chosen without the held-out cells."""
    if n_genes > adata.n_vars:
        raise ValueError(f"n_genes={n_genes}, but there are only {adata.n_vars} genes.")
    train = AnnData(get_matrix(adata[~held_out], layer).copy(), var=adata.var[[]])
    if is_counts(train.X):
        sc.pp.normalize_total(train, target_sum=1e4)
        sc.pp.log1p(train)
    sc.pp.highly_variable_genes(train, n_top_genes=n_genes)
    return adata[:, train.var["highly_variable"].to_numpy()]


def check_occurs(argument: str, given: Any, column: pd.Series) -> None:
    """Raise a ``ValueError`` unless the column has the value."""
    if not (column == given).any():
        raise ValueError(
            f"{argument} {given!r} is not in adata.obs[{column.name!r}]: "
            f"{join_names(column.unique())}."
        )
