"""Predictions of any number of cells, chunk by chunk to disk, with what is done already kept."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import sys
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

from trvae._data import computed, dense

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TASK = "task.json"
_N_SAMPLED = 64
# Of a file of some hundred elements.
_OVERHEAD_OF_HDF5 = 2**20


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


def check_writable(folder: Path) -> None:
    """Raise a ``PermissionError`` if nothing can be written to a folder.

    Parameters
    ----------
    folder
        Which is there.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {folder} can't be written to.")


def read_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Return some rows, read from disk if they are there.

    Parameters
    ----------
    matrix
        In memory, on disk or a dask array.
    rows
        Positions, in any order.
    """
    # Files are read in ascending order only.
    ascending, inverse = np.unique(rows, return_inverse=True)
    return computed(matrix[ascending])[inverse]


def digest(*arrays: np.ndarray) -> str:
    """Digest of numbers or names, which differs if any of them does."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes() if array.dtype.kind in "fui" else str(list(array)).encode())
    return found.hexdigest()


def digest_of_rows(matrix: Any, rows: np.ndarray) -> str:
    """Digest of a sample of rows, by which other values are known without reading all of them.

    Parameters
    ----------
    matrix
        As in :func:`read_rows`.
    rows
        Positions, of which at most 64 are read, equally far from each other.
    """
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, _N_SAMPLED).round().astype(int))]
    return digest(dense(read_rows(matrix, sample)))


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
    with complete_or_absent(out) as unfinished, _written(unfinished, skeleton) as (root, check):
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


@contextmanager
def naming_what_is_written(path: Path) -> Iterator[None]:
    """Let an error of writing say what could not be written, and why.

    Parameters
    ----------
    path
        File or folder that the context writes.

    Raises
    ------
    OSError
        In place of another one, or of the ``RuntimeError`` that torch and h5py can raise if the
        disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        reason = f"{path} could not be written: {getattr(error, 'strerror', None) or error}"
        raise (OSError(reason) if number is None else OSError(number, reason)) from error


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Yield a path beside to write to, which becomes ``path`` once it is complete.

    Parameters
    ----------
    path
        File or folder to write.

    Raises
    ------
    OSError
        If it can't be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished{path.suffix}")
    with naming_what_is_written(path):
        # What was killed could not tidy up.
        remove(unfinished)
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            remove(unfinished)


@contextmanager
def complete_or_as_before(folder: Path) -> Iterator[Path]:
    """Yield a folder to make, whose files come to ``folder`` once all of them are complete.

    Parameters
    ----------
    folder
        If it is there, it keeps what is not replaced.

    Raises
    ------
    OSError
        If it can't be written.
    """
    if not folder.exists():
        with complete_or_absent(folder) as unfinished:
            yield unfinished
        return
    # Within it, as another disk can begin there.
    unfinished = folder / ".unfinished"
    with naming_what_is_written(folder):
        remove(unfinished)
        try:
            yield unfinished
            for file in unfinished.iterdir():
                file.replace(folder / file.name)
        finally:
            remove(unfinished)


def _check_task(parts: Path, task: dict) -> None:
    path = parts / _TASK
    if not path.exists():
        with complete_or_absent(path) as unfinished:
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
    with complete_or_absent(path) as unfinished, unfinished.open("wb") as file:
        if sparse.issparse(matrix):
            sparse.save_npz(file, matrix, compressed=False)
        else:
            np.savez(file, dense=matrix)


def _load(path: Path) -> Any:
    with np.load(path) as file:
        if "dense" in file:
            return file["dense"]
    return sparse.load_npz(path)


def check_room(path: Path, data: AnnData | MuData) -> None:
    """Raise an ``OSError`` unless there is room for a file that HDF5 writes itself.

    With the disk full, it would end the process.

    Parameters
    ----------
    path
        The file, which is not there yet.
    data
        What is to be written.
    """
    parts = data.mod.values() if isinstance(data, MuData) else [data]
    n_bytes = sum(map(sys.getsizeof, parts)) + int(data.obs.memory_usage(deep=True).sum())
    n_bytes += _OVERHEAD_OF_HDF5
    if hasattr(os, "posix_fallocate"):  # macOS has not.
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        path.unlink()
    elif shutil.disk_usage(path.parent).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _FileOfHDF5(io.FileIO):
    """A file that says at the end what could not be written, as HDF5 crashes if it is told."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all, or nothing from the first error on."""
        left = memoryview(data)
        while self.error is None and len(left) > 0:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """As :meth:`write`: a file can also grow so."""
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0

    def check(self) -> None:
        """Raise the error, if there was one."""
        if self.error is not None:
            raise self.error


@contextmanager
def _open_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    with _FileOfHDF5(path, "r+" if path.exists() else "w+") as file:
        try:
            with h5py.File(file, "r+" if path.stat().st_size > 0 else "w") as root:
                yield root, file.check
        finally:
            # HDF5 itself complains of what it can't read again.
            file.check()


def write_h5ad(path: Path, adata: AnnData, **dataset_kwargs: Any) -> None:
    """Write an AnnData as its own method does, which crashes if the disk is full.

    Parameters
    ----------
    path
        File to write.
    adata
        What to write.
    **dataset_kwargs
        Passed to HDF5, such as ``compression``.

    Raises
    ------
    OSError
        If it can't be written.
    """
    with _open_hdf5(path) as (root, _):
        _write_anndata(root, adata, dataset_kwargs)


def _write_anndata(root: Any, adata: AnnData, dataset_kwargs: dict[str, Any]) -> None:
    # As AnnData itself does before it writes.
    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    write_elem(root, "/", adata, dataset_kwargs=dataset_kwargs)


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
    opened: Any = nullcontext((zarr.open_group(path), bool)) if is_zarr else _open_hdf5(path)
    with opened as (root, check):
        if isinstance(skeleton, AnnData):
            _write_anndata(root, skeleton, {})
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
