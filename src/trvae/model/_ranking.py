"""Differential expression between measured and transferred cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from trvae._utils._arguments import join_names
from trvae.data._cells import loaded
from trvae.data._checks import check_obs_column, check_unique_genes, get_matrix
from trvae.metrics import log_normalized, median_library_size
from trvae.metrics._normalize import is_counts, stated_base
from trvae.model._labels import groups_of
from trvae.model._selection import chosen_cells, own_data
from trvae.model._transfer import TransferMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.data._registered import RegisteredData


class RankingMixin(TransferMixin):
    """Differential expression between measured and transferred cells."""

    def rank_transferred_genes(
        self,
        adata: AnnData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        reference: AnnData | None = None,
        groupby: str | None = None,
        method: str = "wilcoxon",
        seed: int = 0,
        batch_size: int | None = None,
        **kwargs,
    ) -> pd.DataFrame:
        """Rank genes, group by group, by how transferred cells differ from measured ones.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, seed, batch_size
            See :meth:`transfer`: cells and conditions, with one target condition. File-backed
            cells are read into memory.
        reference
            Measured cells to compare with, on the same scale. By default the cells before their
            transfer, which ranks genes by their predicted response. Cells measured under the
            target condition rank genes by what the prediction misses.
        groupby
            Column of ``obs`` with the groups, by default that of the labels. Cells without a label
            are a group, and so are all cells if either side has no labels.
        method, **kwargs
            See :func:`scanpy.tl.rank_genes_groups`: the test and its options.

        Returns
        -------
        Table in the format of :func:`scanpy.get.rank_genes_groups_df` for several groups: the
        columns ``group``, ``names``, ``scores``, ``logfoldchanges``, ``pvals`` and ``pvals_adj``,
        within each group from the highest score to the lowest. A positive score means higher
        expression in the transferred cells.

        Raises
        ------
        ValueError
            As :meth:`transfer`, if ``reference`` lacks a gene or the column, or if no group has two
            cells on either side.
        TypeError
            If an option of scanpy's is given that has no effect here.
        RuntimeError
            If the model is not trained.

        Notes
        -----
        Cells are compared as ``log(1 + count / library size * median library size)``. A p-value
        shows how clearly predicted and measured cells differ. It is not evidence that real cells
        respond: all predictions come from the same model, and more cells make it smaller.

        References
        ----------
        Wolf, Angerer & Theis, *Genome Biology* 19, 15 (2018): scanpy, which computes the tests.
        """
        first = self._models[0]
        known = first.registered_data
        known.condition_code(target_condition, "target_condition")
        if others := kwargs.keys() & {"copy", "groups", "key_added"}:
            raise TypeError(f"there is no argument {join_names(sorted(others))}.")
        cells = loaded(known.cells_of(own_data(first) if adata is None else adata))
        if groupby is not None:
            check_obs_column(cells, "groupby", groupby, complete=False)
        transferred: Any = self.transfer(
            cells,
            target_condition,
            source_condition=source_condition,
            indices=indices,
            seed=seed,
            batch_size=batch_size,
        )
        if reference is None:
            reference = cells[chosen_cells(known, cells.obs, source_condition, indices)[0]]
        reference = loaded(known.cells_of(reference))
        check_unique_genes(reference, "reference")
        missing = transferred.var_names.difference(reference.var_names)
        if len(missing) > 0:
            raise ValueError(f"reference lacks transferred genes: {join_names(missing)}.")
        sides = {"reference": reference[:, transferred.var_names], "transferred": transferred}
        values, base = _on_one_scale(known, sides), _base_of_logarithms(known, reference)
        groups = _groups(known, sides, groupby)
        tables = []
        for group in np.unique(groups["transferred"]):
            rows = {side: values[side][groups[side] == group] for side in sides}
            if all(len(cells) >= 2 for cells in rows.values()):
                table = _compare(rows, transferred.var_names, base, method=method, **kwargs)
                tables.append(table.assign(group=group)[["group", *table.columns]])
        if not tables:
            raise ValueError("no group has 2 cells in both transferred and reference.")
        return pd.concat(tables, ignore_index=True)


def _groups(
    known: RegisteredData, sides: dict[str, AnnData], groupby: str | None
) -> dict[str, np.ndarray]:
    """Group of each cell of both sides."""
    groups = {side: groups_of(known, cells, groupby) for side, cells in sides.items()}
    if any(column is None for _, column in groups.values()):
        return {side: np.full(cells.n_obs, "all cells") for side, cells in sides.items()}
    return {side: values for side, (values, _) in groups.items()}


def _on_one_scale(known: RegisteredData, sides: dict[str, AnnData]) -> dict[str, np.ndarray]:
    """Log-normalised values of measured and transferred cells."""
    library_key = known.arguments.get("library_key")
    if any(library_key not in cells.obs for cells in sides.values()):
        library_key = None
    keys = {"layer": known.layer, "library_key": library_key}
    target_sum = median_library_size(sides["reference"], **keys)
    return {
        side: log_normalized(cells, target_sum=target_sum, **keys) for side, cells in sides.items()
    }


def _base_of_logarithms(known: RegisteredData, measured: AnnData) -> float | None:
    """What :func:`scanpy.pp.log1p` noted of values that are no counts."""
    return None if is_counts(get_matrix(measured, known.layer)) else stated_base(measured)


def _compare(
    rows: dict[str, np.ndarray], var_names: pd.Index, base: float | None, **kwargs
) -> pd.DataFrame:
    sides = np.repeat(list(rows), [len(cells) for cells in rows.values()])
    cells = AnnData(
        np.concatenate(list(rows.values())),
        obs=pd.DataFrame({"side": pd.Categorical(sides)}, index=np.arange(len(sides)).astype(str)),
        var=pd.DataFrame(index=var_names),
        uns={"log1p": {"base": base}},
    )
    sc.tl.rank_genes_groups(cells, "side", groups=["transferred"], reference="reference", **kwargs)
    return sc.get.rank_genes_groups_df(cells, "transferred")
