"""Differential expression between measured and transferred cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from trvae._utils._arguments import join_names
from trvae.data._checks import check_obs_column
from trvae.metrics import log_normalized, median_library_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


class RankingMixin(_Model):
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
            As in :meth:`transfer`, with one target condition.
        reference
            Measured cells to compare with, on the same scale. By default the cells before their
            transfer, so that genes are ranked by their predicted response. With cells measured
            under the target condition they are ranked by what the prediction misses.
        groupby
            Column of ``obs`` with the groups, by default that of the labels. Without one, all
            cells are one group.
        method, **kwargs
            As in :func:`scanpy.tl.rank_genes_groups`.

        Returns
        -------
        As :func:`scanpy.get.rank_genes_groups_df` returns it for several groups: the columns
        ``group``, ``names``, ``scores``, ``logfoldchanges``, ``pvals`` and ``pvals_adj``, from the
        highest score of a group to the lowest. A positive score is of a gene that is higher in
        the transferred cells.

        Raises
        ------
        ValueError
            As in :meth:`transfer`, if ``reference`` lacks a gene or the column, or if no group has
            two cells on either side.
        RuntimeError
            If the model is not trained.

        Notes
        -----
        Cells are compared as ``log(1 + count / library size * median library size)``. A p-value
        tells how clearly the predicted cells differ from the measured ones. It is no evidence
        that real cells respond: every prediction is of the same model, and more cells make it
        smaller.

        References
        ----------
        Wolf, Angerer & Theis, *Genome Biology* 19, 15 (2018): scanpy, whose tests these are.
        """
        self._condition_code(target_condition, "target_condition")
        cells = self._cells_of(self._own_cells() if adata is None else adata)
        transferred = self.transfer(
            cells,
            target_condition,
            source_condition=source_condition,
            indices=indices,
            seed=seed,
            batch_size=batch_size,
        )
        if reference is None:
            reference = cells[self._chosen_cells(cells.obs, source_condition, indices)[0]]
        reference = self._cells_of(reference)
        missing = transferred.var_names.difference(reference.var_names)
        if len(missing) > 0:
            raise ValueError(
                f"reference lacks genes that were transferred: {join_names(missing)}."
            )
        sides = {"reference": reference[:, transferred.var_names], "transferred": transferred}
        values = self._on_one_scale(sides)
        groupby = self.registry["setup_args"]["labels_key"] if groupby is None else groupby
        groups = {
            side: np.full(cells.n_obs, "all cells")
            if groupby is None
            else check_obs_column(cells, "groupby", groupby).to_numpy(dtype=str)
            for side, cells in sides.items()
        }
        tables = []
        for group in np.unique(groups["transferred"]):
            rows = {side: values[side][groups[side] == group] for side in sides}
            if all(len(cells) >= 2 for cells in rows.values()):
                table = _compare(rows, transferred.var_names, method=method, **kwargs)
                tables.append(table.assign(group=group)[["group", *table.columns]])
        if not tables:
            raise ValueError("No group has at least 2 cells among both transferred and reference.")
        return pd.concat(tables, ignore_index=True)

    def _on_one_scale(self, sides: dict[str, AnnData]) -> dict[str, np.ndarray]:
        """Log-normalised values of measured and transferred cells."""
        library_key = self.registry["setup_args"].get("library_key")
        if any(library_key not in cells.obs for cells in sides.values()):
            library_key = None
        keys = {"layer": self._layer, "library_key": library_key}
        target_sum = median_library_size(sides["reference"], **keys)
        return {
            side: log_normalized(cells, target_sum=target_sum, **keys)
            for side, cells in sides.items()
        }


def _compare(rows: dict[str, np.ndarray], var_names: pd.Index, **kwargs) -> pd.DataFrame:
    sides = np.repeat(list(rows), [len(cells) for cells in rows.values()])
    cells = AnnData(
        np.concatenate(list(rows.values())),
        obs=pd.DataFrame({"side": pd.Categorical(sides)}, index=np.arange(len(sides)).astype(str)),
        var=pd.DataFrame(index=var_names),
    )
    sc.tl.rank_genes_groups(cells, "side", groups=["transferred"], reference="reference", **kwargs)
    return sc.get.rank_genes_groups_df(cells, "transferred")
