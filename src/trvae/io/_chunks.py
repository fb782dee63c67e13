"""Predictions written chunk by chunk, so that an interrupted transfer resumes."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from mudata import MuData
from scipy import sparse
from tqdm import tqdm

from trvae.io._atomic import atomic_write, check_writable, remove
from trvae.io._hdf5 import check_room, open_hdf5, write_anndata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_TASK = "task.json"


def check_output(out: str | Path, is_mudata: bool) -> Path:
    """Return the path if it can be written to.

    Parameters
    ----------
    out
        The file or folder to write.
    is_mudata
        Whether a MuData is to be written, not an AnnData.

    Raises
    ------
    ValueError
        If its name doesn't end as one of the formats does.
    FileExistsError
        If it is there already.
    FileNotFoundError
        If its folder is not there.
    PermissionError
        If its folder can't be written to.
    """
    out = Path(out)
    formats = (".h5mu" if is_mudata else ".h5ad", ".zarr")
    if out.suffix not in formats:
        raise ValueError(f"out={str(out)!r} ends neither with {' nor with '.join(formats)}.")
    if out.exists():
        raise FileExistsError(f"{out} is there already. Remove it or name another.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.absolute().parent}.")
    check_writable(out.absolute().parent)
    return out


def write_in_chunks(
    out: Path,
    skeleton: AnnData | MuData,
    modality: str | None,
    layers: list[str],
    n_chunks: int,
    predict: Callable[[list[int]], Iterator[tuple[int, Any]]],
    task: dict,
    progress_bar: bool,
) -> None:
    """Predict the chunks that are not there yet, then put all together.

    Each chunk is a file of its own in ``<out>.parts`` until all are there. Files and the result
    come to be by renaming what is complete: whatever interrupts, there is never half of one.

    Parameters
    ----------
    out
        The ``.h5ad``, ``.h5mu`` or ``.zarr`` to write.
    skeleton
        The result without its matrix.
    modality
        Whose matrix it is, if the result is a MuData.
    layers
        Layers to hold a copy of the matrix.
    n_chunks
        Number of chunks.
    predict
        Yields chunks of the matrix with their numbers, in any order, of which it is given a list.
    task
        What the chunks depend on. Chunks of another task are an error.
    progress_bar
        Whether to show one.

    Raises
    ------
    ValueError
        If there are chunks of another task.
    OSError
        If something can't be written, as the disk is full. What was written before is kept.
    """
    parts = out.with_name(out.name + ".parts")
    if not (parts / _TASK).exists():
        # Chunks that were killed while they were removed tell no more what they are of.
        remove(parts)
        parts.mkdir()
    _check_task(parts, task)
    files = [parts / f"{chunk:06d}.npz" for chunk in range(n_chunks)]
    missing = [chunk for chunk, file in enumerate(files) if not file.exists()]
    with tqdm(
        total=n_chunks,
        initial=n_chunks - len(missing),
        desc=f"transfer to {out.name}",
        disable=not progress_bar,
    ) as bar:
        for chunk, matrix in predict(missing):
            _save(files[chunk], matrix)
            bar.update()
    with atomic_write(out) as unfinished, _written(unfinished, skeleton) as (root, check):
        group = root if modality is None else root["mod"][modality]
        places = [(group, "X"), *((group["layers"], layer) for layer in layers)]
        _write_matrix(places, files, check)
    shutil.rmtree(parts)


def on_cluster(
    client: Any, submit: Callable[[int], Any], numbers: list[int]
) -> Iterator[tuple[int, Any]]:
    """Yield results of tasks with their numbers, as they are done.

    Parameters
    ----------
    client
        Of a dask cluster.
    submit
        Submits the task of a number and returns its future.
    numbers
        Of the tasks. Only so many are submitted at once as keep all workers busy.
    """
    from distributed import as_completed

    waiting = iter(numbers)
    number_of = {}

    def submitted(how_many: int) -> list:
        futures = {submit(number): number for number in islice(waiting, how_many)}
        number_of.update(futures)
        return list(futures)

    done = as_completed(submitted(2 * sum(client.nthreads().values())))
    for future in done:
        yield number_of.pop(future), future.result()
        done.update(submitted(1))


def _check_task(parts: Path, task: dict) -> None:
    path = parts / _TASK
    if not path.exists():
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(task, indent=2))
        return
    before = json.loads(path.read_text())
    if before != task:
        differing = sorted(key for key in task if before.get(key) != task[key])
        raise ValueError(
            f"{parts} has parts of another transfer (they differ in {', '.join(differing)}). "
            "Remove it or name another output."
        )


def _save(path: Path, matrix: Any) -> None:
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        if sparse.issparse(matrix):
            sparse.save_npz(file, matrix, compressed=False)
        else:
            np.savez(file, dense=matrix)


def _load(path: Path) -> Any:
    with np.load(path) as file:
        if "dense" in file:
            return file["dense"]
    return sparse.load_npz(path)


@contextmanager
def _written(path: Path, skeleton: AnnData | MuData) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Write the result without its matrix, and yield it open for more.

    With it comes a function that raises an error if something could not be written so far.
    """
    is_zarr = path.suffix == ".zarr"
    if isinstance(skeleton, MuData):
        if is_zarr:
            skeleton.write_zarr(path)
        else:
            check_room(path, skeleton)
            skeleton.write_h5mu(path)
    # Zarr raises errors itself.
    opened: Any = nullcontext((zarr.open_group(path), bool)) if is_zarr else open_hdf5(path)
    with opened as (root, check):
        if isinstance(skeleton, AnnData):
            write_anndata(root, skeleton, {})
        yield root, check


def _write_matrix(
    places: list[tuple[Any, str]], files: list[Path], check: Callable[[], Any]
) -> None:
    """Write one matrix to all places, each a group and the name within."""
    for number, file in enumerate(files):
        check()
        block = _load(file)
        for group, name in places:
            if number == 0:
                _begin(group, name, block)
            elif sparse.issparse(block):
                sparse_dataset(group[name]).append(block)
            else:
                array = group[name]
                n_rows = array.shape[0]
                array.resize((n_rows + len(block), block.shape[1]))
                array[n_rows:] = block


def _begin(group: Any, name: str, block: Any) -> None:
    kwargs: dict[str, Any] = {}
    if isinstance(group, h5py.Group):
        # What zarr does without being told.
        kwargs["compression"] = "gzip"
        if not sparse.issparse(block):
            kwargs |= {"maxshape": (None, block.shape[1]), "chunks": True}
    write_elem(group, name, block, dataset_kwargs=kwargs)
