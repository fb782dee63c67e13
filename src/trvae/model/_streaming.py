"""Transfer to disk, chunk by chunk, on this machine or a cluster."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from tqdm import tqdm

from trvae._scvi import minify_type
from trvae._utils._matrices import digest, read_rows
from trvae.counterfactual._draws import cell_keys
from trvae.data._cells import with_matrix
from trvae.data._checks import check_not_empty, get_matrix, in_memory
from trvae.data._registration import check_columns_to_predict
from trvae.io._chunks import check_annotations, chunks_of
from trvae.model._decoding import check_trained, predict
from trvae.model._prediction import as_anndata, as_text, in_place_of
from trvae.model._selection import chosen_cells, log_what_stays, select, with_condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from trvae._utils._choices import Estimate
    from trvae.model._base import BaseTRVAE


def transfer_to_disk(
    models: Sequence[BaseTRVAE],
    out: Path,
    data: AnnData | MuData,
    target: Any,
    source: Any,
    indices: Any,
    estimate: Estimate,
    seed: int,
    batch_size: int | None,
    chunk_size: int,
    progress_bar: bool,
    client: Any | None,
) -> Path:
    """Write what :meth:`trvae.TRVAE.transfer` would return; see there for the arguments."""
    check_trained(models)
    first, known = models[0], models[0].registered_data
    adata = known.cells_of(data)
    if minify_type(adata) is not None:
        raise ValueError("cells of a minified AnnData can't be transferred to disk.")
    check_not_empty(adata)
    obs, var, matrix = in_memory(adata.obs), in_memory(adata.var), get_matrix(adata, known.layer)
    positions, conditions = chosen_cells(known, obs, source, indices)
    chosen = with_condition(known, obs.iloc[positions], source)
    check_columns_to_predict(AnnData(obs=chosen), known)
    keys = cell_keys(obs.index)[positions]

    def read(chunk: slice) -> AnnData:
        rows = positions[chunk]
        return with_matrix(obs.iloc[rows], var, known.layer, read_rows(matrix, rows))

    # Wrong arguments, genes and columns are found before anything is predicted.
    targets = known.targets(target)
    probe = select(first, read(slice(0, 1)), targets[0], source, None, estimate, seed)
    everything = replace(probe, adata=AnnData(obs=obs), indices=positions, source=conditions)
    skeleton = in_place_of(first, data, everything, as_anndata(first, None, everything, target))
    check_annotations(skeleton, out.suffix)
    if estimate != "decoded":
        log_what_stays(conditions, targets, known.cells)
    starts = range(0, len(positions), chunk_size)
    slices = list(product(targets, [slice(start, start + chunk_size) for start in starts]))
    task = {
        "target_condition": as_text(target),
        "estimate": estimate,
        "seed": seed,
        "chunk_size": chunk_size,
        "cells": digest(keys, conditions.astype(str)),
        "genes": digest(np.asarray(probe.registered.var_names[probe.gene_order])),
        "model": digest_of_models(models),
    }
    digests: dict[int, str] = {}

    def arguments(number: int) -> tuple:
        name, chunk = slices[number]
        cells = read(chunk)
        digests[number] = known.digest(cells)
        return number, cells, keys[chunk], name, source, estimate, seed, batch_size

    with chunks_of(out, task) as chunks:
        saved = chunks.saved()
        for number, cells in saved.items():
            if known.digest(read(slices[number][1])) != cells:
                raise ValueError(
                    f"{out}.parts has parts of another transfer (they differ in values of cells). "
                    "Remove it or choose another name."
                )
        todo = map(arguments, (number for number in range(len(slices)) if number not in saved))
        predicted = (
            (_predict_chunk(models, *given) for given in todo)
            if client is None
            else _on_cluster(client, models, todo)
        )
        for number, block in tqdm(
            predicted, f"transfer to {out.name}", len(slices),
            initial=len(saved), disable=not progress_bar,
        ):  # fmt: skip
            chunks.save(number, digests.pop(number), block)
        chunks.join(skeleton, known.modality if isinstance(data, MuData) else None, known.layer)
    return out


def digest_of_models(models: Sequence[BaseTRVAE]) -> str:
    """Hash of all that the models' predictions depend on besides the cells."""
    return digest(*(array for model in models for array in _state(model)))


def _state(model: BaseTRVAE) -> Iterator[np.ndarray]:
    for weight in model.module.state_dict().values():
        yield weight.cpu().numpy()
    if model._group_means is not None:
        yield from model._group_means
        yield np.array([model.linear_weight, model.response_limit], float)
    for pair, kept in sorted(model.calibration_.items()):
        yield np.array([pair])
        yield from (kept["network"], kept["linear"])


def _on_cluster(
    client: Any, models: Sequence[BaseTRVAE], todo: Iterator[tuple]
) -> Iterator[tuple[int, Any]]:
    """Predict chunks on the workers, and yield them in the order in which they are done."""
    from distributed import as_completed

    pickled = pickle.dumps([model._without_cells() for model in models])
    on_workers = client.scatter(pickled, broadcast=True)
    futures = as_completed()

    def submit(n: int) -> None:
        for given in islice(todo, n):
            # No two tasks are equal; hashing the cells to find out would take time.
            futures.add(client.submit(_predict_on_worker, on_workers, *given, pure=False))

    # Enough to keep all workers busy; more would fill the memory.
    submit(2 * sum(client.nthreads().values()))
    for future in futures:
        submit(1)
        yield future.result()


def _predict_on_worker(pickled: bytes, *given: Any) -> tuple[int, Any]:
    # Tasks of one worker run side by side, so each has a copy.
    return _predict_chunk(pickle.loads(pickled), *given)


def _predict_chunk(
    models, number, cells, keys, target, source, estimate, seed, batch_size
) -> tuple[int, Any]:
    selection = select(models[0], cells, target, source, None, estimate, seed)
    return number, predict(models, replace(selection, keys=keys), batch_size)
