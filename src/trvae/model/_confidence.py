"""How wrong a prediction will be, and whether cells are like those that were seen."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from trvae._utils._arguments import (
    POSITIVE_INTEGER,
    STRICT_SHARE,
    check_arguments,
    join_names,
)
from trvae._utils._minimums import MIN_LABELS
from trvae.counterfactual._label_response import LEAST_COUNTS, share_of_log
from trvae.counterfactual._left_out import log_normalized_after
from trvae.counterfactual._support import support_of_cells
from trvae.model._labels import (
    counts_per_cell,
    errors_of_labels,
    groups_of,
    libraries_of_expected,
    profile_of,
    table_of_left_out,
)
from trvae.model._selection import Selection, own_libraries, own_values, select
from trvae.model._sentences import summary_of
from trvae.model._transfer import EXPECTATION_RULES, TransferMixin, for_each_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from trvae.counterfactual._left_out import ErrorsOfLabels
    from trvae.model._base import BaseTRVAE

_RULES = {"n_neighbors": POSITIVE_INTEGER, "level": STRICT_SHARE}

_INTERVAL_RULES = {
    "library_size": EXPECTATION_RULES["library_size"],
    "level": STRICT_SHARE,
}


class ConfidenceMixin(TransferMixin):
    """Support and expected errors of predictions."""

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
        like those seen is uniform between 0 and 1; in an ensemble it is the mean over the models, and
        so closer to a half. For a list of conditions, the condition is in
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
        n_neighbors: int = 15,
        level: float = 0.05,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        r"""Assess, group by group, how wrong a prediction will be.

        It is learnt from measured labels: each is left out, predicted, and compared. After
        :meth:`~trvae.TRVAE.calibrate`, models that were trained without it predict it; before, only the
        linear response of the other labels does.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, batch_size
            See :meth:`transfer`: cells and conditions.
        groupby
            Column of ``adata.obs`` with the groups, by default that of the labels. Without such a
            column, all cells are one group; cells without a label are the group "unlabelled".
        n_neighbors
            See :meth:`get_transfer_support`: number of nearest training cells.
        level
            Cells with at least this support count as supported.

        Returns
        -------
        One row per group, with the columns

        * ``n_cells``;
        * ``distance``, the median of :meth:`get_transfer_support`;
        * ``supported``, the share of supported cells. It tells groups that the model has seen from others,
          not right predictions from wrong ones;
        * ``remoteness``: distance of the group's mean from the nearest label that was measured under both
          conditions, in units of the largest such distance between these labels. Above 1, the group is less
          like any of them than they are like each other;
        * ``change``: root mean square, over genes, of the predicted change of the group's mean;
        * ``error``, ``error_low``, ``error_high``: root mean squared error to expect of the predicted
          mean, and its range if the group is like the left-out labels. For counts both are of
          :math:`\log(1 + \text{counts})` at the cells' median library size. NaN if fewer than three
          labels were measured under both conditions, the cells are of several conditions, or they are
          images;
        * ``summary``, a few sentences.

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
            first, adata, target_condition, source_condition, indices, "counterfactual", 0
        )
        groups, groupby = groups_of(first.registered_data, selection.adata, groupby)
        groups = groups[selection.indices]
        own = own_values(first, selection)
        library = own_libraries(first, selection, own)
        size = counts_per_cell(library)
        every = np.arange(first.module.n_input)
        (expected,) = self._expectations(selection, every, "observed", batch_size, 1)
        of_expected = libraries_of_expected(first, library, expected)
        support = self._support_of(selection, n_neighbors, batch_size)
        target = first.conditions.index(target_condition)

        @functools.cache
        def of_left_out(source: int) -> tuple[ErrorsOfLabels, pd.DataFrame] | None:
            errors = errors_of_labels(first, source, target, size)
            return None if errors is None else (errors, table_of_left_out(first, source, target))

        rows = {}
        for name in np.unique(groups):
            cells = groups == name
            sources = pd.unique(selection.source[cells])
            before, after = (
                profile_of(values[cells], None if sizes is None else sizes[cells])
                for values, sizes in ((own, library), (expected, of_expected))
            )
            left_out, error, remoteness = None, (np.nan, np.nan, np.nan), np.nan
            if len(sources) == 1 and sources[0] != target_condition:
                left_out = of_left_out(first.conditions.index(sources[0]))
            if left_out is not None:
                errors, _ = left_out
                error = errors.expected_rmse(before, after - before, int(cells.sum()))
                remoteness = errors.remoteness(before)
            change = log_normalized_after(before, after - before, size) - log_normalized_after(
                before, np.zeros(1), size
            )
            of_group = support[cells]
            row = {
                "n_cells": int(cells.sum()),
                "distance": of_group["distance"].median(),
                "supported": (of_group["support"] >= level).mean(),
                "remoteness": remoteness,
                "change": np.sqrt(np.square(change).mean()),
                **dict(zip(("error", "error_low", "error_high"), error, strict=True)),
            }
            row["summary"] = summary_of(
                first, name, row, sources, target_condition, groupby, left_out and left_out[1]
            )
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(groupby)

    @for_each_target
    def get_transferred_means(
        self,
        adata: AnnData | MuData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["observed"] = "observed",
        level: float = 0.9,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Mean expression of a group of cells under another condition, with an interval.

        The interval is that of a label which was not measured under the target condition. Its width
        comes from labels that were: each was left out and predicted, by :meth:`~trvae.TRVAE.calibrate`
        with models trained without it, or else by the linear response of the others.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, gene_list, library_size, batch_size
            See :meth:`get_transferred_expression`: cells of one condition, target, genes and scale.
        level
            Share of the genes whose mean is to lie between ``low`` and ``high``.

        Returns
        -------
        One row per gene, with the columns ``source`` (the cells' own mean), ``transferred`` (the mean
        expectation), ``low`` and ``high``, all on the scale that ``library_size`` says: compare them with
        measured cells on the same scale. For a list of conditions, the condition is in the index before
        the gene.

        Raises
        ------
        ValueError
            If a condition or gene is unknown or cells do not fit the model (see
            :meth:`get_transferred_expression`), if ``level`` is not between 0 and 1, if the cells are
            of several conditions, or if fewer than three labels were measured under both conditions.
        RuntimeError
            If the model is not trained.

        References
        ----------
        Vovk, Lindsay, Nouretdinov & Gammerman, *Mondrian confidence machine* (2003): intervals from
        the errors of similar cases, here of genes with a similar expected error.
        """
        check_arguments(locals(), _INTERVAL_RULES)
        first = self._models[0]
        selection = select(
            first, adata, target_condition, source_condition, indices, "counterfactual", 0
        )
        columns = self._columns(selection, gene_list)
        sources = pd.unique(selection.source)
        if len(sources) > 1:
            raise ValueError(
                "an interval needs cells of one condition, not of "
                f"{join_names(sorted(sources, key=str))}: source_condition=..."
            )
        (source,) = sources
        codes = first.conditions.index(source), first.conditions.index(target_condition)
        own = own_values(first, selection)
        library = own_libraries(first, selection, own)
        errors = errors_of_labels(first, *codes, counts_per_cell(library))
        if errors is None:
            raise ValueError(
                f"an interval needs {MIN_LABELS} labels measured under both {target_condition!r} "
                f"and {source!r}. get_transferred_expression gives means without an interval."
            )
        every = np.arange(first.module.n_input)
        (expected,) = self._expectations(selection, every, "observed", batch_size, 1)
        before = profile_of(own, library)
        after = profile_of(expected, libraries_of_expected(first, library, expected))
        ends = errors.interval(before, after - before, len(expected), level)
        size = "observed" if library is None else library_size
        own_mean, transferred = (_mean_of(cells, size) for cells in (own, expected))
        if library is not None:
            # From shares of the library to the scale of the mean. An end at 0 stays there.
            share = share_of_log(after)
            scale = np.full_like(share, transferred.sum() / share.sum())
            np.divide(transferred, share, out=scale, where=share > 0)
            ends = tuple(end * scale for end in ends)
        return pd.DataFrame(
            {"source": own_mean, "transferred": transferred, "low": ends[0], "high": ends[1]},
            index=selection.registered.var_names,
        ).iloc[columns]

    def _support_of(
        self, selection: Selection, n_neighbors: int, batch_size: int | None
    ) -> pd.DataFrame:
        """Support of the selected cells, averaged over the models."""
        tables = [_support_by(model, selection, n_neighbors, batch_size) for model in self._models]
        return sum(tables[1:], tables[0]) / len(tables)


def _mean_of(cells: Any, library_size: float | Literal["observed"]) -> np.ndarray:
    """Mean of cells, ``n_genes``, each with counts scaled to a sum if one is given."""
    if library_size == "observed":
        return np.ravel(cells.mean(0, dtype=float))
    sums = np.ravel(cells.sum(1, dtype=float))
    scale = np.divide(library_size, sums, out=np.zeros_like(sums), where=sums > LEAST_COUNTS)
    return np.ravel(scale @ cells) / len(sums)


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
