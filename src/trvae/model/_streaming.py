"""Transfer to disk, chunk by chunk, on this machine or a cluster."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from mudata import MuData

from trvae._scvi import minify_type
from trvae._utils._matrices import digest, digest_of_rows, read_rows
from trvae.counterfactual._draws import cell_keys
from trvae.data._cells import with_matrix
from trvae.data._checks import get_matrix, in_memory
from trvae.io._chunks import on_cluster, write_in_chunks
from trvae.model._decoding import predict
from trvae.model._prediction import as_anndata, as_text, in_place_of
from trvae.model._selection import chosen_cells, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from trvae.counterfactual._residual import Estimate
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
    first = models[0]
    known = first.registered_data
    adata = known.cells_of(data)
    if minify_type(adata) is not None:
        raise ValueError("cells of a minified AnnData can't be transferred to disk.")
    obs, var = in_memory(adata.obs), in_memory(adata.var)
    matrix = get_matrix(adata, known.layer)
    positions, conditions = chosen_cells(known, obs, source, indices)
    keys = cell_keys(obs.index)[positions]
    targets = known.targets(target)
    chunks = [
        (name, slice(start, start + chunk_size))
        for name in targets
        for start in range(0, len(positions), chunk_size)
    ]

    def read(chunk: slice) -> AnnData:
        rows = positions[chunk]
        return with_matrix(obs.iloc[rows], var, known.layer, read_rows(matrix, rows))

    def arguments(number: int) -> tuple:
        name, chunk = chunks[number]
        return read(chunk), keys[chunk], name, source, estimate, seed, batch_size

    def predictions(numbers: list[int]) -> Iterator[tuple[int, Any]]:
        if client is None:
            return ((number, _predict_chunk(models, *arguments(number))) for number in numbers)
        pickled = pickle.dumps([model._without_cells() for model in models])
        on_workers = client.scatter(pickled, broadcast=True)
        return on_cluster(
            client,
            lambda number: client.submit(_predict_on_worker, on_workers, *arguments(number)),
            numbers,
        )

    # Wrong arguments and genes are found before anything is written.
    probe = select(first, read(slice(0, 1)), targets[0], source, None, estimate, seed)
    everything = replace(probe, adata=AnnData(obs=obs), indices=positions, source=conditions)
    skeleton = as_anndata(first, None, everything, target)
    write_in_chunks(
        out,
        in_place_of(first, data, everything, skeleton),
        known.modality if isinstance(data, MuData) else None,
        [] if known.layer is None else [known.layer],
        len(chunks),
        predictions,
        {
            "target_condition": as_text(target),
            "estimate": estimate,
            "seed": seed,
            "chunk_size": chunk_size,
            "cells": digest(keys, conditions.astype(str)),
            "values": digest_of_rows(matrix, positions),
            "genes": digest(np.asarray(probe.registered.var_names[probe.gene_order])),
            "model": digest(*(array for model in models for array in _state(model))),
        },
        progress_bar,
    )
    return out


def _state(model: BaseTRVAE) -> Iterator[np.ndarray]:
    """All that a prediction depends on besides the cells."""
    for weight in model.module.state_dict().values():
        yield weight.cpu().numpy()
    if model.mean_profiles_ is not None and model.modelled_shares_ is not None:
        yield model.mean_profiles_
        yield model.modelled_shares_
        yield np.array([model.linear_weight, model.response_limit], float)


def _predict_on_worker(pickled: bytes, *arguments: Any) -> Any:
    # Tasks of one worker run side by side, so each has a copy.
    return _predict_chunk(pickle.loads(pickled), *arguments)


def _predict_chunk(models, cells, keys, target, source, estimate, seed, batch_size) -> Any:
    selection = select(models[0], cells, target, source, None, estimate, seed)
    return predict(models, replace(selection, keys=keys), batch_size)
