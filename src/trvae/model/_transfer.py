"""Public methods for prediction under another condition."""

from __future__ import annotations

import functools
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from mudata import MuData

from trvae._utils._arguments import (
    NONE,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SEED,
    check_arguments,
    choice,
    choice_of,
)
from trvae._utils._choices import Estimate
from trvae._utils._matrices import stacked
from trvae.counterfactual._label_response import LEAST_COUNTS
from trvae.data._checks import is_list_of_conditions
from trvae.io._chunks import check_output
from trvae.model._decoding import decode_both, predict, with_columns
from trvae.model._prediction import as_anndata, in_place_of
from trvae.model._selection import Selection, log_what_stays, own_data, select, with_target
from trvae.model._streaming import transfer_to_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData

    from trvae.model._base import BaseTRVAE

_RULES = {
    "estimate": choice_of(Estimate),
    "seed": SEED,
    "batch_size": POSITIVE_INTEGER | NONE,
    "chunk_size": POSITIVE_INTEGER,
}
EXPECTATION_RULES = {
    "estimate": choice_of(Estimate),
    "library_size": choice("observed") | POSITIVE_NUMBER,
    "n_samples": POSITIVE_INTEGER,
    "seed": SEED,
}


def for_each_target(method: Callable) -> Callable:
    """Let a method take several target conditions and concatenate the answers.

    Its second argument is ``target_condition``. It returns a DataFrame, or an array whose
    second-last axis is that of the cells.
    """

    @functools.wraps(method)
    def wrapped(self, adata=None, target_condition=None, **kwargs):
        if not is_list_of_conditions(target_condition):
            return method(self, adata, target_condition, **kwargs)
        targets = self._models[0].registered_data.targets(target_condition)
        answers = [method(self, adata, target, **kwargs) for target in targets]
        if isinstance(answers[0], np.ndarray):
            return np.concatenate(answers, axis=-2)
        return pd.concat(answers, keys=targets, names=["target_condition"])

    return wrapped


class TransferMixin:
    """Predict cells under conditions in which they were not measured."""

    @property
    def _models(self) -> Sequence[BaseTRVAE]:
        """One model, or an ensemble's: the first registers the cells, all decode them."""
        raise NotImplementedError

    def transfer(
        self,
        adata: AnnData | MuData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        estimate: Estimate = "counterfactual",
        seed: int = 0,
        batch_size: int | None = None,
        out: str | Path | None = None,
        chunk_size: int = 10_000,
        progress_bar: bool = True,
        client: Any | None = None,
    ) -> AnnData | MuData | Path:
        r"""Predict cells as they would be under another condition.

        Cells are encoded under their own condition and decoded under both, which gives expected
        counts :math:`r_0` and :math:`r_1`. The decoder's change is limited and added up with that
        of a linear model of the labels: weighted by ``linear_weight`` of :class:`~trvae.TRVAE` or, after
        :meth:`~trvae.TRVAE.calibrate`, by what predicts left-out labels best.
        A cell's residual, which the decoder misses, is carried over: if a gene's rate falls, the
        cell keeps :math:`\mathrm{Binomial}(x, r_1 / r_0)` of its counts :math:`x`; if it rises,
        negative-binomial counts of mean :math:`r_1 - r_0` are added. The residual of log-normalised
        values shrinks if the likelihood's standard deviation is smaller under the target; if it is
        larger, normal noise is added.

        Parameters
        ----------
        adata
            Cells to transfer, by default those that the model was trained on. Genes are matched by
            name. The object is not changed. With ``out`` it may be backed, lazy or dask-backed,
            and is read in chunks. A model that was set up with a MuData also takes an AnnData that
            has all columns.
        target_condition
            The condition to predict, or a list of conditions.
        source_condition
            Transfer only cells measured under this condition. If ``adata.obs`` has no column of
            conditions, all cells count as measured under it. By default each cell is transferred
            from its own condition; those under the target condition already stay as they are, unless
            they are decoded.
        indices
            Positions of the cells to transfer, or a mask. By default all.
        estimate
            * ``"counterfactual"``: these very cells, as described above.
            * ``"linear"``: the same, but with the change of the linear model alone. It is the better one
              where :meth:`~trvae.TRVAE.calibrate` says so.
            * ``"decoded"``: what the decoder gives for the target condition (the paper's
              prediction): counts drawn from the likelihood, or the mean of log-normalised values.
        seed
            Seed of the draws. A cell's draws depend only on the seed and the cell's name.
        batch_size
            Cells decoded at once, by default as many as suit the device. The result does not depend
            on it.
        out
            Write the result to this ``.h5ad`` (for a MuData ``.h5mu``) or ``.zarr`` instead of
            returning it. Chunks are kept beside it until all are done: after an interruption, the
            same call resumes.
        chunk_size
            Cells read and written at once with ``out``.
        progress_bar
            Whether to show a progress bar with ``out``.
        client
            :class:`distributed.Client` of a dask cluster whose workers predict the chunks with
            ``out``. Chunks are read and written by this process.

        Returns
        -------
        The path ``out`` if given, otherwise the cells under the target condition on the registered
        scale: integer counts or log-normalised values in ``X`` (and in the registered layer). Names,
        order, ``obs`` and ``var`` are those of ``adata``, with the target in the column of
        conditions and without genes unknown to the model; ``uns["trvae"]`` holds the provenance:
        conditions, estimate, likelihood, seed, and whether the prediction is calibrated.
        For a MuData, the prediction replaces the modality with the expression; everything else
        stays.

        For a list of conditions, all cells are predicted under the first, then all under the next,
        and so on; ``-`` and the condition are appended to the cells' names.

        Raises
        ------
        ValueError
            If a condition is unknown, no cell is selected, a gene is missing, a value doesn't suit
            the likelihood, or the chunks beside ``out`` belong to another transfer.
        FileExistsError, FileNotFoundError
            If ``out`` exists, or its folder does not.
        OSError
            If ``out`` can't be written, for instance because the disk is full. Finished chunks are
            kept.
        RuntimeError
            If the model is not trained.

        References
        ----------
        Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2: transfer between
        conditions, as the decoded mean.
        """
        check_arguments(locals(), _RULES)
        models = self._models
        first = models[0]
        if out is not None:
            data = own_data(first) if adata is None else adata
            return transfer_to_disk(
                models, check_output(out, isinstance(data, MuData)), data, target_condition,
                source_condition, indices, estimate, seed, batch_size, chunk_size, progress_bar,
                client,
            )  # fmt: skip
        if client is not None:
            raise ValueError("client needs out: it is only used for transfers to disk.")
        targets = first.registered_data.targets(target_condition)
        selection = select(first, adata, targets[0], source_condition, indices, estimate, seed)
        if estimate != "decoded":
            log_what_stays(selection.source, targets, first.registered_data.cells)
        others = (with_target(first, selection, target) for target in targets[1:])
        predictions = [predict(models, each, batch_size) for each in chain([selection], others)]
        predicted = as_anndata(first, stacked(predictions), selection, target_condition)
        return in_place_of(first, first.adata if adata is None else adata, selection, predicted)

    @for_each_target
    def get_transferred_expression(
        self,
        adata: AnnData | MuData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["observed"] = "observed",
        n_samples: int = 1,
        estimate: Estimate = "counterfactual",
        seed: int = 0,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
    ) -> pd.DataFrame | np.ndarray:
        r"""Expected expression of cells under another condition.

        This is the expectation of what :meth:`transfer` draws. For counts it is
        :math:`x \min(r_1 / r_0, 1) + \max(r_1 - r_0, 0)`, with :math:`r_0, r_1` the expected
        counts under the source and the target condition. For log-normalised values it is
        :math:`d_1 + \min(\sigma_1 / \sigma_0, 1) (x - d_0)`, with :math:`d` the decoded means and
        :math:`\sigma` the likelihood's standard deviations; it is never negative if no training
        value was.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, estimate, batch_size
            See :meth:`transfer`: cells, conditions, and how to predict.
        gene_list
            Genes to return, by default all.
        library_size
            ``"observed"``: expected counts at the cell's own library size, or size factor. A
            number: scaled to that sum over the model's genes, as ``scanpy.pp.normalize_total`` scales
            cells of these genes. Log-normalised values are not scaled.
        n_samples
            ``1``: at the posterior mean of ``z``. More: the number of draws of ``z`` from its posterior.
        seed
            Seed of the posterior draws.
        return_mean
            Whether to average over the posterior draws.
        return_numpy
            Return an array instead of a DataFrame. Several draws are always returned as an array.

        Returns
        -------
        DataFrame, ``n_cells x n_genes``; or an array of that shape, or
        ``n_samples x n_cells x n_genes`` for several draws with ``return_mean=False``. For a list
        of conditions, all cells under the first come first, and a DataFrame has a MultiIndex of
        ``target_condition`` and cell.

        Raises
        ------
        ValueError
            If a condition is unknown or cells do not fit the model (see :meth:`transfer`), if
            ``gene_list`` has unknown genes, or if ``library_size`` or ``n_samples`` is not
            positive.
        RuntimeError
            If the model is not trained.

        References
        ----------
        Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2.
        """
        check_arguments(locals(), EXPECTATION_RULES)
        selection = select(
            self._models[0], adata, target_condition, source_condition, indices, estimate, seed
        )
        columns = self._columns(selection, gene_list)
        draws = self._expectations(selection, columns, library_size, batch_size, n_samples)
        if n_samples > 1 and not return_mean:
            return np.stack(list(draws))
        expression = next(draws)
        for draw in draws:
            expression += draw
        expression /= n_samples
        if return_numpy:
            return expression
        genes = selection.registered.var_names[columns]
        return pd.DataFrame(expression, index=selection.names, columns=genes)

    def _columns(self, selection: Selection, gene_list: Sequence[str] | None) -> np.ndarray:
        """Positions, among the model's genes, of the genes to return."""
        if gene_list is None:
            return selection.gene_order
        return self._models[0].registered_data.gene_positions(gene_list)

    @torch.inference_mode()
    def _expectations(
        self,
        selection: Selection,
        columns: np.ndarray,
        library_size: float | Literal["observed"],
        batch_size: int | None,
        n_samples: int,
    ) -> Iterator[np.ndarray]:
        """Yield expected expression, ``n_cells x n_genes``, at the posterior mean or for draws."""
        first = self._models[0]
        for draw in range(n_samples):
            blocks = []
            for minibatch in decode_both(
                self._models, selection, batch_size, draw if n_samples > 1 else None
            ):
                expected = first._expected(minibatch, selection.estimate)
                if library_size != "observed" and first.module.is_count_model:
                    sums = expected.sum(1, keepdim=True)
                    # Cells without counts stay so.
                    expected = expected * torch.where(sums > LEAST_COUNTS, library_size / sums, 0)
                blocks.append(with_columns(expected, columns).float().cpu().numpy())
            yield np.concatenate(blocks)
