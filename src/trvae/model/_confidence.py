"""Whether a prediction can be trusted: support by training cells, spread over draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import (
    AT_LEAST_2,
    POSITIVE_INTEGER,
    SEED,
    STRICT_SHARE,
    check_arguments,
)
from trvae._utils._matrices import dense
from trvae.counterfactual._label_response import log_share
from trvae.counterfactual._support import support_of_cells
from trvae.data._checks import check_obs_column
from trvae.model._selection import Selection, select
from trvae.model._transfer import TransferMixin, for_each_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from trvae.model._base import BaseTRVAE

_RULES = {
    "n_samples": AT_LEAST_2,
    "n_neighbors": POSITIVE_INTEGER,
    "level": STRICT_SHARE,
    "seed": SEED,
}


class ConfidenceMixin(TransferMixin):
    """Support and spread of predictions."""

    @for_each_target
    def get_transfer_support(
        self,
        adata: AnnData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        n_neighbors: int = 15,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """How far cells lie from cells that were seen under the target condition.

        Latent representations are compared. A cell with little support has no counterpart among the
        training cells of the target condition: its transfer extrapolates.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            See :meth:`transfer`: cells and conditions.
        n_neighbors
            Number of nearest training cells over which the distance is averaged.

        Returns
        -------
        One row per cell, with the columns ``distance`` from the nearest training cells of the
        target condition, in units of the median distance between such cells; and ``support``, the
        share of those training cells that lie at least as far from the others. The support of cells
        like those seen is uniform between 0 and 1. For a list of conditions, the condition is in
        the index before the cell.

        Raises
        ------
        ValueError
            If a condition is unknown or cells do not fit the model (see :meth:`transfer`), or if
            there are fewer than two training cells to compare with.
        RuntimeError
            If the model is not trained.

        Notes
        -----
        At most 5,000 training cells, balanced over labels and conditions, are kept with the model
        for this.

        References
        ----------
        Ishimtsev, Bernstein, Burnaev & Nazarov, *PMLR* 60 (2017): conformal anomaly detection with
        the distance to the nearest neighbours as nonconformity measure.
        """
        check_arguments(locals(), {"n_neighbors": POSITIVE_INTEGER})
        selection = select(
            self._models[0], adata, target_condition, source_condition, indices, "decoded", 0
        )
        return self._support_of(selection, n_neighbors, batch_size)

    @for_each_target
    def assess_transfer(
        self,
        adata: AnnData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        groupby: str | None = None,
        n_samples: int = 20,
        n_neighbors: int = 15,
        level: float = 0.05,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        r"""Assess, group by group, how far a prediction can be trusted.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            See :meth:`transfer`: cells and conditions.
        groupby
            Column of ``adata.obs`` with the groups, by default that of the labels. Without such a
            column, all cells are one group; cells without a label are the group "unlabelled".
        n_samples, seed
            Number of posterior draws, at least 2, and their seed; see
            :meth:`get_transferred_expression`.
        n_neighbors
            See :meth:`get_transfer_support`: number of nearest training cells.
        level
            Cells with at least this support count as supported.

        Returns
        -------
        One row per group, with the columns

        * ``n_cells``;
        * ``distance``, the median of :meth:`get_transfer_support`;
        * ``supported``, the share of supported cells;
        * ``change`` and ``spread``: root mean square, over genes, of the predicted change of the
          group's mean, and of the standard deviation of that mean over the draws, for counts as
          :math:`\log(1 + \text{counts per ten thousand})`;
        * ``summary``, one sentence.

        For a list of conditions, the condition is in the index before the group.

        Raises
        ------
        ValueError
            If a condition is unknown, cells do not fit the model or there are too few training
            cells (see :meth:`get_transfer_support`), or if ``adata.obs`` has no column ``groupby``.
        RuntimeError
            If the model is not trained.
        """
        check_arguments(locals(), _RULES)
        first = self._models[0]
        selection = select(
            first, adata, target_condition, source_condition, indices, "counterfactual", seed
        )
        known = first.registered_data
        labels_key = known.arguments["labels_key"]
        if groupby is None and labels_key not in selection.adata.obs:
            groups = np.full(len(selection.indices), f"all {known.cells}")
        else:
            is_given, groupby = groupby is not None, groupby or labels_key
            column = check_obs_column(selection.adata, "groupby", groupby, complete=is_given)
            column = column.astype(object).where(column.notna(), "unlabelled")
            groups = column.iloc[selection.indices].to_numpy(dtype=str)
        names, codes = np.unique(groups, return_inverse=True)
        indicator = np.eye(len(names))[:, codes]
        indicator /= indicator.sum(1, keepdims=True)

        def group_means(expression: np.ndarray) -> np.ndarray:
            if not first.module.is_count_model:
                return indicator @ expression
            sums = np.maximum(expression.sum(1, keepdims=True), 1e-12)
            return log_share(indicator @ (expression / sums))

        every = np.arange(first.module.n_input)

        def means_of_draws(n: int) -> np.ndarray:
            draws = self._expectations(selection, every, "observed", batch_size, n)
            return np.stack([group_means(expression) for expression in draws])

        (after,), spread = means_of_draws(1), means_of_draws(n_samples).std(0)
        change = after - group_means(_expression_of(first, selection))
        support = self._support_of(selection, n_neighbors, batch_size)
        by_group = support.groupby(groups)
        table = pd.DataFrame(
            {
                "n_cells": by_group.size(),
                "distance": by_group["distance"].median(),
                "supported": by_group["support"].agg(lambda s: (s >= level).mean()),
                "change": _root_mean_square(change),
                "spread": _root_mean_square(spread),
            },
            index=pd.Index(names, name=groupby),
        )
        table["summary"] = [
            _sentence(name, row, target_condition, known.cells) for name, row in table.iterrows()
        ]
        return table

    def _support_of(
        self, selection: Selection, n_neighbors: int, batch_size: int | None
    ) -> pd.DataFrame:
        """Support of the selected cells, averaged over the models."""
        tables = [_support_by(model, selection, n_neighbors, batch_size) for model in self._models]
        return sum(tables[1:], tables[0]) / len(tables)


def _support_by(
    model: BaseTRVAE, selection: Selection, n_neighbors: int, batch_size: int | None
) -> pd.DataFrame:
    reference = model._kept_reference_cells()
    is_target = reference["condition"] == model.conditions.index(selection.target)
    seen = reference["z_mean"][is_target]
    if len(seen) < 2:
        raise ValueError(
            f"fewer than 2 training {model.registered_data.cells} of {selection.target!r} are kept "
            "with the model."
        )
    z = model.get_latent_representation(
        selection.registered, indices=selection.indices, batch_size=batch_size
    )
    distance, support = support_of_cells(z, seen, n_neighbors)
    return pd.DataFrame({"distance": distance, "support": support}, index=selection.names)


def _expression_of(model: BaseTRVAE, selection: Selection) -> np.ndarray:
    """The selected cells' own counts or values, ``n_cells x n_genes``."""
    manager = model.get_anndata_manager(selection.registered, required=True)
    return dense(manager.get_from_registry(REGISTRY_KEYS.X_KEY)[selection.indices])


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).mean(1))


def _sentence(group: str, row: pd.Series, target: Any, cells: str) -> str:
    share = f"{row['supported']:.0%} of the {int(row['n_cells']):,} {cells} of {group}"
    if row["supported"] >= 0.5:
        sentence = f"{share} resemble {cells} seen under {target}: the prediction is close to data"
    else:
        sentence = (
            f"Only {share} resemble {cells} seen under {target}: the prediction extrapolates, so "
            "hold out similar groups with trvae.evaluate before relying on it"
        )
    if row["change"] < 2 * row["spread"]:
        sentence += "; the change is less than twice its spread over draws"
    return sentence + "."
