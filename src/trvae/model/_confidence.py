"""Whether a prediction can be trusted: support by training cells, spread over draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import check_positive_integer, is_number
from trvae._utils._matrices import dense
from trvae.counterfactual._label_response import log_share
from trvae.counterfactual._support import support_of_cells
from trvae.data._checks import check_obs_column
from trvae.model._transfer import for_each_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


class ConfidenceMixin(_Model):
    """Tell how far predictions are from what the model has seen."""

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

        Compared are latent representations. A cell with little support has no counterpart among
        the target condition's training cells, so that its transfer extrapolates.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            As in :meth:`transfer`.
        n_neighbors
            Number of nearest training cells whose mean distance counts.

        Returns
        -------
        One row a cell, with the columns ``distance`` from the nearest training cells of the target
        condition, in units of the median distance of such cells from each other; and ``support``,
        the share of the target condition's training cells that lie at least as far from the
        others. Cells like those seen have a support spread evenly between 0 and 1. Under a list of
        conditions, the condition is in the index before the cell.

        Raises
        ------
        ValueError
            As in :meth:`transfer`, or if there are fewer than two training cells to compare with.
        RuntimeError
            If the model is not trained.

        Notes
        -----
        At most 5,000 training cells, of all labels and conditions alike, are kept with the model
        for this.

        References
        ----------
        Ishimtsev, Bernstein, Burnaev & Nazarov, *PMLR* 60 (2017): the conformal anomaly detector
        whose measure of strangeness is the distance to the nearest neighbours.
        """
        check_positive_integer("n_neighbors", n_neighbors)
        selection = self._select(adata, target_condition, source_condition, indices, "decoded", 0)
        return self._support_of(selection, target_condition, n_neighbors, batch_size)

    def _support_of(self, selection, target, n_neighbors, batch_size) -> pd.DataFrame:
        reference = self._kept_reference_cells()
        seen = reference["z_mean"][reference["condition"] == self.conditions.index(target)]
        if len(seen) < 2:
            raise ValueError(
                f"Fewer than 2 training {self._CELLS} of {target!r} are kept with the model."
            )
        z = self.get_latent_representation(
            selection.registered, indices=selection.indices, batch_size=batch_size
        )
        distance, support = support_of_cells(z, seen, n_neighbors)
        return pd.DataFrame(
            {"distance": distance, "support": support},
            index=selection.registered.obs_names[selection.indices],
        )

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
        r"""Tell, group by group, how much the prediction is to be trusted.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            As in :meth:`transfer`.
        groupby
            Column of ``adata.obs`` with the groups, by default that of the labels. Without one,
            all cells are one group.
        n_samples, seed
            Number and seed of the draws, at least 2 (see :meth:`get_transferred_expression`).
        n_neighbors
            As in :meth:`get_transfer_support`.
        level
            Cells count as supported if their support is at least that.

        Returns
        -------
        One row a group, with the columns

        * ``n_cells``;
        * ``distance``, the median of :meth:`get_transfer_support`;
        * ``supported``, the share of the cells that are;
        * ``change`` and ``spread``: root mean square, over genes, of the predicted change of the
          group's mean and of the standard deviation of that mean over the draws, for counts as
          :math:`\log(1 + \text{counts per ten thousand})`;
        * ``summary``, one sentence.

        Under a list of conditions, the condition is in the index before the group.

        Raises
        ------
        ValueError
            As in :meth:`get_transfer_support`, or if there is no such column.
        RuntimeError
            If the model is not trained.
        """
        check_positive_integer("n_samples", n_samples)
        check_positive_integer("n_neighbors", n_neighbors)
        if n_samples < 2:
            raise ValueError(f"n_samples={n_samples}, but a spread takes 2 draws or more.")
        if not is_number(level) or not 0 < level < 1:
            raise ValueError(f"level={level!r} is not a number between 0 and 1.")
        selection = self._select(
            adata, target_condition, source_condition, indices, "counterfactual", seed
        )
        obs = selection.adata.obs.iloc[selection.indices]
        groupby = self.registry["setup_args"]["labels_key"] if groupby is None else groupby
        if groupby is None:
            groups = pd.Series(f"all {self._CELLS}", index=obs.index)
        else:
            groups = check_obs_column(selection.adata, "groupby", groupby)
            groups = groups.iloc[selection.indices].astype(str)
        names, codes = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
        indicator = np.eye(len(names))[:, codes]
        indicator /= indicator.sum(1, keepdims=True)

        def group_means(expression: np.ndarray) -> np.ndarray:
            if not self.module.is_count_model:
                return indicator @ expression
            sums = np.maximum(expression.sum(1, keepdims=True), 1e-12)
            return log_share(indicator @ (expression / sums))

        def means_of_draws(n: int) -> np.ndarray:
            draws = self._draws_of_expression(
                selection, target_condition, "counterfactual", slice(None), "observed",
                batch_size, n, seed,
            )  # fmt: skip
            return np.stack([group_means(expression) for expression in draws])

        (after,), spread = means_of_draws(1), means_of_draws(n_samples).std(0)
        change = after - group_means(self._expression_of(selection))
        support = self._support_of(selection, target_condition, n_neighbors, batch_size)
        by_group = support.groupby(groups.to_numpy(dtype=str))
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
            _sentence(name, row, target_condition, self._CELLS) for name, row in table.iterrows()
        ]
        return table

    def _expression_of(self, selection) -> np.ndarray:
        """The selected cells' own counts or values, ``n_cells x n_genes``."""
        manager = self.get_anndata_manager(selection.registered, required=True)
        return dense(manager.get_from_registry(REGISTRY_KEYS.X_KEY)[selection.indices])


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).mean(1))


def _sentence(group: str, row: pd.Series, target: Any, cells: str) -> str:
    share = f"{row['supported']:.0%} of the {int(row['n_cells']):,} {cells} of {group}"
    if row["supported"] >= 0.5:
        sentence = (
            f"{share} are like {cells} seen under {target}, so that the prediction is close to "
            "data"
        )
    else:
        sentence = (
            f"Only {share} are like any {cells.removesuffix('s')} seen under {target}, so that the "
            "prediction extrapolates: hold out similar groups with trvae.evaluate before relying on it"
        )
    if row["change"] < 2 * row["spread"]:
        sentence += "; its change is not clear of its spread over draws"
    return sentence + "."
