"""The questions across conditions: what would these cells be under another condition?"""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data._utils import _get_adata_minify_type
from scvi.module._constants import MODULE_KEYS

from trvae._utils._arguments import (
    check_choice,
    check_positive_integer,
    check_seed,
    is_number,
    join_names,
)
from trvae._utils._matrices import digest, digest_of_rows, read_rows
from trvae.counterfactual._draws import cell_keys, normal_draws, uniform_draws
from trvae.counterfactual._label_response import MIN_LABELS, ResponseOfLabels
from trvae.counterfactual._residual import (
    Estimate,
    count_quantile,
    draw_counts,
    draw_values,
    expected_counts,
    expected_values,
)
from trvae.data._cells import with_matrix
from trvae.data._checks import (
    cell_positions,
    check_not_lazy,
    get_matrix,
    in_memory,
    is_list_of_conditions,
)
from trvae.data._mudata import with_prediction
from trvae.io._chunks import check_output, on_cluster, write_in_chunks
from trvae.module._base import BASE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


@dataclass(frozen=True)
class Selection:
    """The cells to transfer."""

    adata: AnnData
    """The user's, untouched."""
    registered: AnnData
    """What the model reads: the same cells, the model's genes."""
    indices: np.ndarray
    gene_order: np.ndarray
    """Positions among the model's genes, in the order of the user's AnnData."""
    source: np.ndarray
    """Name of each selected cell's source condition."""
    responses: dict[int, ResponseOfLabels]
    """Of the labels, by code of the source condition; none where they are not to be used."""
    keys: np.ndarray
    """What each selected cell's random numbers are drawn from, beside the seed."""


class Minibatch(NamedTuple):
    """A minibatch decoded under both conditions. Arrays are ``n_cells x n_genes``."""

    cells: np.ndarray
    """Positions among the selected cells."""
    x: np.ndarray
    size: np.ndarray
    """Library size, or the registered size factor, by which rates are scaled: ``n_cells x 1``."""
    source: np.ndarray
    """Expected counts or values."""
    target: np.ndarray
    inverse_dispersion: np.ndarray | None
    """Under the target condition, ``1 x n_genes``; ``None`` unless the likelihood has one."""
    zero_inflation: np.ndarray | None
    """Probability under the target condition; ``None`` unless the likelihood has one."""
    source_sd: Any
    """Standard deviations of log-normalised values; ``None`` for counts."""
    target_sd: Any
    """The same under the target condition, ``1 x n_genes``."""


def for_each_target(method: Callable) -> Callable:
    """Let a method take several target conditions, of which the answers are put together.

    Parameters
    ----------
    method
        Method of a model, whose second argument is ``target_condition``. It returns a table, or an
        array of which the second last axis is that of the cells.
    """

    @functools.wraps(method)
    def wrapped(self, adata=None, target_condition=None, **kwargs):
        if not is_list_of_conditions(target_condition):
            return method(self, adata, target_condition, **kwargs)
        targets = self._targets(target_condition)
        answers = [method(self, adata, target, **kwargs) for target in targets]
        if isinstance(answers[0], np.ndarray):
            return np.concatenate(answers, axis=-2)
        return pd.concat(answers, keys=targets, names=["target_condition"])

    return wrapped


def _predict_on_worker(model: bytes, *arguments: Any) -> Any:
    # A copy for each task: those of one worker run side by side.
    return pickle.loads(model)._predict_chunk(*arguments)


class TransferMixin(_Model):
    """Predict cells under conditions in which they were not measured."""

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

        The cells are encoded under their own condition and decoded under both; :math:`r_0, r_1`
        are the expected counts. In :math:`r_1` the decoder's change is limited, and averaged with
        that of a linear model, see ``response_limit`` and ``linear_weight`` of
        :class:`~trvae.TRVAE`. What the decoder misses of a cell is carried over: of a gene with
        :math:`r_1 < r_0` the cell keeps
        :math:`\mathrm{Binomial}(x, r_1 / r_0)` of its counts, to one with :math:`r_1 > r_0` it
        receives negative-binomial counts of mean :math:`r_1 - r_0`. Of log-normalised values, what
        the decoder misses shrinks if the likelihood's standard deviation is smaller under the
        target; if it is larger, normal noise is added.

        Parameters
        ----------
        adata
            Cells to transfer, by default those that the model was trained on. Genes are matched
            by name. It is not changed. With ``out`` it may be backed, lazy or of dask arrays, and
            no more than a chunk of it is read at once (of a MuData, of the modality with the
            expression). A model of MuData takes an AnnData, too, that has all columns.
        target_condition
            The condition to predict, or a list of conditions.
        source_condition
            Transfer only cells measured under this condition. If ``adata.obs`` has no column of
            conditions, all cells count as measured under it. By default every cell is
            transferred, from its own condition.
        indices
            Positions of the cells to transfer, or a mask of them. By default all.
        estimate
            * ``"counterfactual"``: of these very cells, as described above.
            * ``"decoded"``: what the decoder gives for the target condition (the paper's
              prediction): for count models counts drawn from the likelihood, for log-normalised
              values its mean.
        seed
            Seed of the draws. A cell's draws depend on the seed and its name only: neither on
            its neighbours nor on the order of the cells or the minibatch size.
        batch_size
            Cells decoded at once, by default ``scvi.settings.batch_size``.
        out
            ``.h5ad`` (of a MuData ``.h5mu``) or ``.zarr`` to write the result to, in place of
            returning it. Chunks are kept beside it until all are done: after an interruption, the same call goes on where
            it stopped.
        chunk_size
            Cells read and written at once if there is ``out``.
        progress_bar
            Whether to show one if there is ``out``.
        client
            :class:`distributed.Client` of a dask cluster, on whose workers the chunks are
            transferred if there is ``out``. They are read and written here.

        Returns
        -------
        The path ``out``, if given; else the cells under the target condition, on the scale that
        was registered: integer counts, or log-normalised values, in ``X`` (and in the registered
        layer, if any). Names, order, ``obs`` and ``var`` are those of ``adata``, with the target
        in the column of conditions and without genes that the model doesn't know; ``uns["trvae"]``
        tells where the prediction comes from. Of a MuData, this takes the place of the modality
        with the expression; other modalities, and ``obs``, are those of the MuData.

        Under a list of conditions, all cells are predicted under the first, then all under the
        next, and so on; a cell's name is followed by ``-`` and the condition.

        Raises
        ------
        ValueError
            If a condition is not one of the model's, no cell is selected, a gene is missing, a
            value doesn't suit the likelihood, or beside ``out`` there are chunks of another
            transfer.
        FileExistsError, FileNotFoundError
            If ``out`` is there already, or its folder is not.
        OSError
            If ``out`` can't be written, as the disk is full. The chunks that are done are kept.
        RuntimeError
            If the model is not trained.

        References
        ----------
        Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2: transfer between conditions,
        of which they take the decoded mean.
        """
        if out is not None:
            data = self._own_cells() if adata is None else adata
            return self._transfer_to_disk(
                check_output(out, isinstance(data, MuData)), data, target_condition, source_condition, indices, estimate,
                seed, batch_size, chunk_size, progress_bar, client,
            )  # fmt: skip
        if client is not None:
            raise ValueError("A cluster is used to write to disk only: client needs out.")
        matrices = []
        for target in self._targets(target_condition):
            selection = self._select(adata, target, source_condition, indices, estimate, seed)
            matrices.append(self._predict(selection, target, estimate, seed, batch_size))
        matrix = _stacked(matrices)
        predicted = self._as_anndata(matrix, selection, target_condition, estimate, seed)
        return self._in_place_of(self.adata if adata is None else adata, selection, predicted)

    def _predict(
        self, selection: Selection, target: Any, estimate: Estimate, seed: int, batch_size
    ) -> np.ndarray | sparse.csr_matrix:
        """Predict the selected cells, ``n_cells x n_genes``."""
        blocks = []
        for minibatch in self._decode_both(selection, target, batch_size):
            keys = selection.keys[minibatch.cells]
            if self.module.is_count_model:
                predicted = self._draw_counts(minibatch, estimate, keys, seed)
            else:
                predicted = self._draw_values(minibatch, estimate, keys, seed)
            predicted = self._as_registered(predicted.take(selection.gene_order, axis=1))
            blocks.append(_to_csr(predicted) if self.data_is_sparse_ else predicted)
        return _stacked(blocks)

    def _as_registered(self, predicted: np.ndarray) -> np.ndarray:
        """Predicted values, of the type that is returned."""
        return predicted.astype(np.float32)

    def _transfer_to_disk(
        self, out, data, target, source, indices, estimate, seed, batch_size, chunk_size,
        progress_bar, client,
    ) -> Path:  # fmt: skip
        check_positive_integer("chunk_size", chunk_size)
        adata = self._cells_of(data)
        if _get_adata_minify_type(adata) is not None:
            raise ValueError("Cells of a minified AnnData can't be written to out.")
        obs, var, matrix = (
            in_memory(adata.obs),
            in_memory(adata.var),
            get_matrix(adata, self._layer),
        )
        positions, conditions = self._chosen_cells(obs, source, indices)
        keys = cell_keys(obs.index)[positions]

        def read(chunk: slice) -> AnnData:
            rows = positions[chunk]
            return with_matrix(obs.iloc[rows], var, self._layer, read_rows(matrix, rows))

        targets = self._targets(target)
        chunks = [
            (one, slice(start, start + chunk_size))
            for one in targets
            for start in range(0, len(positions), chunk_size)
        ]

        def arguments(number: int) -> tuple:
            one, chunk = chunks[number]
            return read(chunk), keys[chunk], one, source, estimate, seed, batch_size

        def predict(numbers: list[int]) -> Iterator[tuple[int, Any]]:
            if client is None:
                return ((number, self._predict_chunk(*arguments(number))) for number in numbers)
            model = client.scatter(pickle.dumps(self._without_cells()), broadcast=True)
            return on_cluster(
                client,
                lambda number: client.submit(_predict_on_worker, model, *arguments(number)),
                numbers,
            )

        # What can be wrong with arguments and genes is known before anything is written.
        one = self._select(read(slice(0, 1)), targets[0], source, None, estimate, seed)
        everything = replace(one, adata=AnnData(obs=obs), indices=positions, source=conditions)
        skeleton = self._as_anndata(None, everything, target, estimate, seed)
        write_in_chunks(
            out,
            self._in_place_of(data, everything, skeleton),
            self._modality if isinstance(data, MuData) else None,
            [] if self._layer is None else [self._layer],
            len(chunks),
            predict,
            {
                "target_condition": _as_text(target),
                "estimate": estimate,
                "seed": seed,
                "chunk_size": chunk_size,
                "cells": digest(keys, conditions.astype(str)),
                "values": digest_of_rows(matrix, positions),
                "genes": digest(np.asarray(one.registered.var_names[one.gene_order])),
                "model": digest(*self._state()),
            },
            progress_bar,
        )
        return out

    def _state(self) -> Iterable[np.ndarray]:
        """All that the prediction depends on beside the cells."""
        state = [_to_numpy(weight) for weight in self.module.state_dict().values()]
        if self.mean_profiles_ is not None:
            settings = [self.linear_weight, self.response_limit]
            state += [self.mean_profiles_, self.modelled_shares_, np.array(settings, float)]
        return state

    def _predict_chunk(self, cells, keys, target, source, estimate, seed, batch_size):
        selection = self._select(cells, target, source, None, estimate, seed)
        return self._predict(replace(selection, keys=keys), target, estimate, seed, batch_size)

    @for_each_target
    @torch.inference_mode()
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

        The expectation of what :meth:`transfer` draws: for counts
        :math:`x \min(r_1 / r_0, 1) + \max(r_1 - r_0, 0)`, with :math:`r_0, r_1` the expected
        counts under the source and the target condition; for log-normalised values
        :math:`d_1 + \min(\sigma_1 / \sigma_0, 1) (x - d_0)`, with :math:`d` the decoded means
        and :math:`\sigma` the likelihood's standard deviations (and no value below 0 if none
        was in training).

        Parameters
        ----------
        adata, target_condition, source_condition, indices, estimate, batch_size
            As in :meth:`transfer`.
        gene_list
            Genes to return, by default all.
        library_size
            ``"observed"``: expected counts of the cell with the library size it was measured
            with. A number: expected counts per that many. Log-normalised values are not scaled.
        n_samples
            ``1``: at the posterior mean of ``z``. More: that many draws, of ``z`` from its
            posterior and, for counterfactuals, of how much a label's response differs from its
            prediction (see :meth:`get_transferred_means`).
        seed
            Seed of the posterior draws.
        return_mean
            Whether to average over the posterior draws.
        return_numpy
            Return an array in place of a DataFrame. Several posterior draws are always returned
            as an array.

        Returns
        -------
        DataFrame, ``n_cells x n_genes``, with names; or an array of that shape, or
        ``n_samples x n_cells x n_genes`` if there are several draws and ``return_mean=False``.
        Under a list of conditions, all cells under the first come first, and so on; a DataFrame
        then has the condition, as ``target_condition``, in its index before the cell.

        Raises
        ------
        ValueError
            As in :meth:`transfer`, or if a gene of ``gene_list`` is not one of the model's, or
            ``library_size`` or ``n_samples`` is not positive.
        RuntimeError
            If the model is not trained.

        References
        ----------
        As of :meth:`transfer`.
        """
        if library_size != "observed" and not (is_number(library_size) and library_size > 0):
            raise ValueError(f"library_size={library_size!r} is neither 'observed' nor positive.")
        check_positive_integer("n_samples", n_samples)
        selection = self._select(
            adata, target_condition, source_condition, indices, estimate, seed
        )
        columns = self._columns(selection, gene_list)
        draws = list(
            self._draws_of_expression(
                selection, target_condition, estimate, columns, library_size, batch_size,
                n_samples, seed,
            )
        )  # fmt: skip
        if n_samples > 1 and not return_mean:
            return np.stack(draws)
        expression = draws[0] if n_samples == 1 else np.mean(draws, axis=0)
        if return_numpy:
            return expression
        return pd.DataFrame(
            expression,
            index=selection.registered.obs_names[selection.indices],
            columns=selection.registered.var_names[columns],
        )

    @for_each_target
    @torch.inference_mode()
    def get_transferred_means(
        self,
        adata: AnnData | MuData | None = None,
        target_condition: Any = None,
        *,
        source_condition: Any = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["observed"] = "observed",
        n_samples: int = 100,
        level: float = 0.9,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Mean expression of a group of cells under another condition, with an interval.

        The interval is for cells of a label that was not measured under the target condition,
        whose response may differ from what the others' tell. By how much is drawn from how the
        labels that were measured differ from what the others tell of them: each is predicted
        without it, by the linear model of :meth:`transfer`. To that come draws of ``z`` from its
        posterior.

        Parameters
        ----------
        adata, target_condition, source_condition, indices, gene_list, library_size, batch_size
            As in :meth:`get_transferred_expression`.
        n_samples
            Number of draws, at least 2.
        level
            Share of the draws between ``low`` and ``high``.
        seed
            Seed of the draws.

        Returns
        -------
        One row a gene, with the columns ``transferred``, the mean that
        :meth:`get_transferred_expression` expects, ``low`` and ``high``. Under a list of
        conditions, the condition is in the index before the gene.

        Raises
        ------
        ValueError
            As in :meth:`get_transferred_expression`, if ``level`` is not between 0 and 1, or if
            fewer than three labels were measured under both conditions.
        RuntimeError
            If the model is not trained.
        """
        if not is_number(level) or not 0 < level < 1:
            raise ValueError(f"level={level!r} is not a number between 0 and 1.")
        check_positive_integer("n_samples", n_samples)
        if n_samples < 2:
            raise ValueError(f"n_samples={n_samples}, but an interval takes 2 draws or more.")
        selection = self._select(
            adata, target_condition, source_condition, indices, "counterfactual", seed
        )
        without = set(selection.source) - {target_condition}
        without -= {self.conditions[code] for code in selection.responses}
        if without:
            raise ValueError(
                f"Fewer than {MIN_LABELS} labels were measured under both {target_condition!r} and "
                f"{join_names(sorted(without, key=str))}, so that nothing is known of how much "
                "labels differ. get_transferred_expression gives means without an interval."
            )
        columns = self._columns(selection, gene_list)

        def means(n: int) -> list[np.ndarray]:
            draws = self._draws_of_expression(
                selection, target_condition, "counterfactual", columns, library_size, batch_size,
                n, seed,
            )  # fmt: skip
            return [expression.mean(0) for expression in draws]

        (transferred,) = means(1)
        low, high = np.quantile(means(n_samples), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return pd.DataFrame(
            {"transferred": transferred, "low": low, "high": high},
            index=selection.registered.var_names[columns],
        )

    def _columns(self, selection: Selection, gene_list: Sequence[str] | None) -> np.ndarray:
        """Positions, among the model's genes, of those to return."""
        return selection.gene_order if gene_list is None else self._known_genes(gene_list)

    def _draws_of_expression(
        self, selection, target, estimate, columns, library_size, batch_size, n_samples, seed
    ) -> Iterator[np.ndarray]:
        """Yield expected expression, ``n_cells x n_genes``; a single draw is no draw."""
        for draw in range(n_samples):
            blocks = []
            for minibatch in self._decode_both(
                selection, target, batch_size, (seed, draw) if n_samples > 1 else None
            ):
                expected = self._expect(minibatch, estimate)
                if library_size != "observed" and self.module.is_count_model:
                    expected = expected * (library_size / minibatch.size)
                blocks.append(expected[:, columns].astype(np.float32))
            yield np.concatenate(blocks)

    # ------------------------------------------------------------------- selection

    def _targets(self, target_condition: Any) -> list[Any]:
        """The target conditions, all of them the model's."""
        if not is_list_of_conditions(target_condition):
            self._condition_code(target_condition, "target_condition")
            return [target_condition]
        targets = list(target_condition)
        if len(targets) == 0:
            raise ValueError("target_condition is an empty list.")
        for target in targets:
            self._condition_code(target, "target_condition")
        if len(set(targets)) < len(targets):
            raise ValueError(f"target_condition names one twice: {join_names(targets)}.")
        return targets

    def _select(self, adata, target, source, indices, estimate, seed) -> Selection:
        """Check what was asked for and find the cells."""
        self._check_if_trained(warn=False)
        check_choice("estimate", estimate, get_args(Estimate))
        check_seed(seed)
        code = self._condition_code(target, "target_condition")
        if source is not None:
            self._condition_code(source, "source_condition")
        adata, registered = self._read(adata, source)
        if estimate == "counterfactual" and not self._has_expression(registered):
            raise ValueError(
                f"estimate='counterfactual' needs the {self._CELLS}' own values, which are not kept in "
                "this minified AnnData. Use estimate='decoded', or pass the full AnnData."
            )

        positions, conditions = self._chosen_cells(registered.obs, source, indices)
        responses = {
            source_code: response
            for source_code in map(self.conditions.index, dict.fromkeys(conditions))
            if estimate == "counterfactual" and source_code != code
            if (response := self._response_of_labels(source_code, code)) is not None
        }
        return Selection(
            adata,
            registered,
            positions,
            self._gene_order(adata),
            conditions,
            responses,
            cell_keys(registered.obs_names)[positions],
        )

    def _chosen_cells(self, obs: pd.DataFrame, source, indices) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the selected cells, and the condition that each was measured under."""
        positions = cell_positions(indices, len(obs), cells=self._CELLS)
        self._check_has_conditions(obs, source)
        if self._condition_key in obs:
            conditions = obs[self._condition_key].to_numpy()[positions]
        else:
            conditions = np.full(len(positions), source, dtype=object)
        if source is not None:
            chosen = conditions == source
            positions, conditions = positions[chosen], conditions[chosen]
        if len(positions) == 0:
            raise ValueError(
                f"No {self._CELLS} are selected: there are none with "
                f"{self._condition_key}={source!r} among those given."
            )
        return positions, conditions

    def _check_has_conditions(self, obs: pd.DataFrame, source: Any) -> None:
        if self._condition_key not in obs and source is None:
            raise ValueError(
                f"condition_key {self._condition_key!r} is not in adata.obs. Name the condition of "
                f"all {self._CELLS} by source_condition=... if they have one in common."
            )

    def _own_cells(self) -> AnnData | MuData:
        if self.adata is None:
            raise ValueError(
                f"The model has no AnnData of its own. Pass the {self._CELLS}: adata=..."
            )
        self._check_is_as_set_up()
        return self.adata

    def _read(self, adata, source) -> tuple[AnnData, AnnData]:
        """Return the user's AnnData, and the one that the model reads in its place."""
        if adata is None:
            return self._cells_of(self._own_cells()), self._validate_anndata(None)
        adata = self._cells_of(adata)
        check_not_lazy(adata)
        self._check_has_conditions(adata.obs, source)
        if source is not None and self._condition_key not in adata.obs:
            obs = adata.obs.assign(**{self._condition_key: source})
            return adata, self._validate_anndata(adata, obs=obs)
        return adata, self._validate_anndata(adata)

    def _has_expression(self, registered: AnnData) -> bool:
        manager = self.get_anndata_manager(registered, required=True)
        return self.module.minified_data_type is None or (
            REGISTRY_KEYS.MINIFY_TYPE_KEY not in manager.data_registry
            or "counts" in manager.get_from_registry(REGISTRY_KEYS.MINIFY_TYPE_KEY)
        )

    def _condition_code(self, name: Any, argument: str) -> int:
        """Code of a condition, or an error that lists the model's conditions."""
        # A list or an array would be compared with its elements.
        if not pd.api.types.is_scalar(name) or name not in self.conditions:
            raise ValueError(
                f"{argument} {name!r} is not one of the model's conditions: "
                f"{join_names(self.conditions)}."
            )
        return self.conditions.index(name)

    def _known_genes(self, gene_list: Sequence[str]) -> np.ndarray:
        """Positions among the model's genes, or an error that names those that aren't there."""
        if isinstance(gene_list, str):
            raise ValueError(f"gene_list={gene_list!r} is not a list of genes.")
        positions = pd.Index(self._var_names).get_indexer(list(gene_list))
        if (positions < 0).any():
            unknown = np.asarray(list(gene_list))[positions < 0]
            raise ValueError(f"gene_list has genes unknown to the model: {join_names(unknown)}.")
        return positions

    # -------------------------------------------------------------------- decoding

    def _encode(
        self, selection: Selection, batch_size: int | None
    ) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
        """Minibatches of the selected cells, each with what is inferred at its posterior mean."""
        loader = self._make_data_loader(
            selection.registered, indices=selection.indices, batch_size=batch_size
        )
        self.module.eval()
        for tensors in loader:
            with self.module.posterior_mean():
                inferred = self.module.inference(**self.module._get_inference_input(tensors))
            yield tensors, inferred

    @torch.inference_mode()
    def _decode_both(
        self,
        selection: Selection,
        target: Any,
        batch_size: int | None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[Minibatch]:
        """Encode under the source and decode under both conditions, minibatch by minibatch.

        ``draw`` is the seed and the number of a draw of ``z`` and of the labels' response;
        ``None`` decodes the posterior mean.
        """
        code = self._condition_code(target, "target_condition")
        deviations = {
            source: response.draw_deviation(np.random.default_rng(draw))
            for source, response in selection.responses.items()
            if draw is not None
        }
        is_counts = self.module.is_count_model
        start = 0
        for tensors, inferred in self._encode(selection, batch_size):
            x = tensors[REGISTRY_KEYS.X_KEY]
            cells = np.arange(start, start + len(x))
            start += len(x)
            if draw is not None:
                qz = inferred[MODULE_KEYS.QZ_KEY]
                noise = normal_draws(selection.keys[cells], *draw, qz.loc.shape[-1])
                inferred[MODULE_KEYS.Z_KEY] = qz.loc + qz.scale * torch.as_tensor(
                    noise, dtype=qz.loc.dtype, device=qz.loc.device
                )
            inputs = self.module._get_generative_input(tensors, inferred)
            decoded = self.module.generative(**inputs)
            source = decoded[MODULE_KEYS.PX_KEY]
            size_factor = inputs[MODULE_KEYS.SIZE_FACTOR_KEY]
            size = inputs[MODULE_KEYS.LIBRARY_KEY].exp() if size_factor is None else size_factor
            target_px = self.module.generative(
                **inputs, transform_batch=code, base=decoded[BASE_KEY]
            )[MODULE_KEYS.PX_KEY]
            source_mean, target_mean = _to_numpy(source.mean), _to_numpy(target_px.mean)
            source_code = tensors[REGISTRY_KEYS.BATCH_KEY].numpy().ravel()
            for one, response in selection.responses.items():
                if (rows := source_code == one).any():
                    target_mean[rows] = response(
                        source_mean[rows], target_mean[rows], deviations.get(one)
                    )
            yield Minibatch(
                cells,
                x.numpy(),
                _to_numpy(size),
                source_mean,
                target_mean,
                # All cells are under one condition.
                _to_numpy(target_px.theta[:1]) if hasattr(target_px, "theta") else None,
                _to_numpy(target_px.zi_probs) if hasattr(target_px, "zi_probs") else None,
                None if is_counts else _to_numpy(self.module.residual_sd(source)),
                None if is_counts else _to_numpy(self.module.residual_sd(target_px)[:1]),
            )

    def _response_of_labels(self, source: int, target: int) -> ResponseOfLabels | None:
        """What the labels measured under both conditions (by code) tell; ``None`` if too few."""
        if self.mean_profiles_ is None:
            return None
        profiles = self.mean_profiles_[:, [source, target]]
        both = ~np.isnan(profiles).any((1, 2))
        if both.sum() < MIN_LABELS:
            return None
        return ResponseOfLabels(
            *profiles[both].swapaxes(0, 1),
            *self.modelled_shares_[both][:, [source, target]].T,
            weight=self.linear_weight,
            is_counts=self.module.is_count_model,
            limit=np.inf if self.response_limit is None else self.response_limit,
        )

    def _expect(self, minibatch: Minibatch, estimate: Estimate) -> np.ndarray:
        if estimate == "decoded":
            return minibatch.target
        if self.module.is_count_model:
            return expected_counts(minibatch.x, minibatch.source, minibatch.target)
        return expected_values(
            minibatch.x,
            minibatch.source,
            minibatch.target,
            minibatch.source_sd,
            minibatch.target_sd,
            self.expression_is_nonnegative_,
        )

    def _draw_values(
        self, minibatch: Minibatch, estimate: Estimate, keys: np.ndarray, seed: int
    ) -> np.ndarray:
        if estimate == "decoded":
            return minibatch.target
        return draw_values(
            minibatch.x,
            minibatch.source,
            minibatch.target,
            minibatch.source_sd,
            minibatch.target_sd,
            uniform_draws(keys, seed, minibatch.x.shape[1]),
            self.expression_is_nonnegative_,
        )

    def _draw_counts(
        self, minibatch: Minibatch, estimate: Estimate, keys: np.ndarray, seed: int
    ) -> np.ndarray:
        uniform = uniform_draws(keys, seed, minibatch.x.shape[1])
        if estimate == "counterfactual":
            return draw_counts(
                minibatch.x,
                minibatch.source,
                minibatch.target,
                minibatch.inverse_dispersion,
                uniform,
            )
        mean = minibatch.target
        if minibatch.zero_inflation is not None:
            # The lowest quantiles are the inflated zeros, the others those of the NB.
            share = 1 - minibatch.zero_inflation
            mean = mean / np.maximum(share, 1e-12)
            uniform = np.maximum(1 - (1 - uniform) / np.maximum(share, 1e-12), 0)
        return count_quantile(uniform, mean, minibatch.inverse_dispersion)

    def _as_anndata(self, matrix, selection: Selection, target, estimate, seed) -> AnnData:
        registered, targets = selection.registered, self._targets(target)
        obs = selection.adata.obs.iloc[np.tile(selection.indices, len(targets))].copy()
        obs = obs.drop(columns=[column for column in obs if str(column).startswith("_scvi_")])
        codes = [self.conditions.index(one) for one in targets]
        obs[self._condition_key] = pd.Categorical.from_codes(
            np.repeat(codes, len(selection.indices)), pd.Index(self.conditions)
        )
        if is_list_of_conditions(target):
            obs.index = obs.index.astype(str) + "-" + obs[self._condition_key].astype(str)
            obs.index.name = selection.adata.obs.index.name
        result = AnnData(matrix, obs=obs, var=registered.var.iloc[selection.gene_order].copy())
        layer = self._layer
        if layer is not None and matrix is not None:
            result.layers[layer] = result.X.copy()
        result.uns["trvae"] = {
            "target_condition": _as_text(target),
            "source_conditions": np.unique(selection.source.astype(str)),
            "estimate": estimate,
            **self.module.likelihood_setting,
            "seed": seed,
        }
        return result

    def _in_place_of(self, data, selection: Selection, predicted: AnnData) -> AnnData | MuData:
        """Return the prediction; if cells of a MuData were predicted, within one."""
        if not isinstance(data, MuData):
            return predicted
        positions = np.tile(selection.indices, predicted.n_obs // len(selection.indices))
        return with_prediction(data, positions, predicted, self.registry["setup_args"])


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.float64)


def _as_text(target: Any) -> str | list[str]:
    return list(map(str, target)) if is_list_of_conditions(target) else str(target)


def _stacked(blocks: list) -> np.ndarray | sparse.csr_matrix:
    """Rows of all blocks."""
    if len(blocks) == 1:
        return blocks[0]
    return sparse.vstack(blocks, "csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)


def _to_csr(dense: np.ndarray) -> sparse.csr_matrix:
    """As SciPy's, which takes several times as long to find what is not 0."""
    n_columns = dense.shape[1]
    positions = np.flatnonzero(dense != 0)
    bounds = np.searchsorted(positions, np.arange(len(dense) + 1) * n_columns)
    return sparse.csr_matrix(
        (dense.ravel()[positions], positions % n_columns, bounds), shape=dense.shape
    )
