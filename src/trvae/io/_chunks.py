"""Results written chunk by chunk, so that an interrupted transfer resumes."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from filelock import FileLock, Timeout
from mudata import MuData
from scipy import sparse

from trvae._utils._arguments import join_names
from trvae.io._atomic import atomic_write, remove_files, remove_if_empty, unfinished_of
from trvae.io._hdf5 import check_room, open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_INT32 = 2**31 - 1

# Files of chunks: their number, and the digest of their cells.
_CHUNK = re.compile(r"\d{6,}-[0-9a-f]+\.npz")


def check_output(out: str | Path, is_mudata: bool) -> Path:
    """Return the path of a result if it has the suffix of a format and doesn't exist yet.

    Parameters
    ----------
    out
        The file or folder to write.
    is_mudata
        Whether the result is a MuData, not an AnnData.

    Raises
    ------
    ValueError, FileExistsError, FileNotFoundError
        Otherwise, or if its folder doesn't exist.
    """
    out = Path(out)
    formats = (".h5mu" if is_mudata else ".h5ad", ".zarr")
    if out.suffix not in formats:
        raise ValueError(f"out must end with {' or '.join(formats)}, got {str(out)!r}.")
    check_is_new(out)
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder of {out} does not exist.")
    return out


def check_is_new(out: Path) -> None:
    """Raise a ``FileExistsError`` if there is such a file or folder."""
    if out.exists():
        raise FileExistsError(f"{out} exists. Remove it or choose another name.")


def check_annotations(result: AnnData | MuData, suffix: str) -> None:
    """Raise a ``ValueError`` that names what can't be written of ``obs``, ``var`` and ``uns``.

    Parameters
    ----------
    result
        The result, with or without its matrix. Its strings become categories, as in writing it.
    suffix
        Suffix of the file to write. Nothing is written to the disk.
    """
    result.strings_to_categoricals()
    parts = {"adata": result}
    if isinstance(result, MuData):
        parts = {"mdata": result} | {f"mdata[{name!r}]": m for name, m in result.mod.items()}
    for name, part in parts.items():
        for field, values in {"obs": part.obs, "var": part.var, "uns": dict(part.uns)}.items():
            if (error := _error_of_writing(values, suffix)) is None:
                continue
            wrong = [key for key in values if _error_of_writing(_only(values, key), suffix)]
            keys = f"[{join_names(dict.fromkeys(wrong))}]" if wrong else ""
            raise ValueError(f"{name}.{field}{keys} can't be written: {error}") from error


def _only(values: Any, key: Any) -> Any:
    # Of columns that share a name, all.
    return {key: values[key]} if isinstance(values, dict) else values[[key]]


def _error_of_writing(values: Any, suffix: str) -> Exception | None:
    """Write values to a file in memory, and return the error if they can't be written."""
    opened: Any = (
        nullcontext(zarr.group(zarr.storage.MemoryStore()))
        if suffix == ".zarr"
        else h5py.File("annotations", "w", driver="core", backing_store=False)
    )
    with opened as group, _settled_sharding():
        try:
            write_elem(group, "annotations", values)
        except Exception as error:  # noqa: BLE001 - packages raise errors of many kinds
            return error
    return None


@contextmanager
def chunks_of(out: Path, task: dict[str, Any]) -> Iterator[Chunks]:
    """Yield the chunks of an unfinished result, to which no other process writes in the meantime.

    Parameters
    ----------
    out
        The ``.h5ad``, ``.h5mu`` or ``.zarr`` to write.
    task
        What the chunks depend on, as plain data.

    Raises
    ------
    ValueError
        If there are chunks of another task, or another transfer is writing them.
    FileExistsError
        If another transfer has written the result in the meantime.
    OSError
        If the folder can't be created.
    """
    folder = out.with_name(out.name + ".parts")
    folder.mkdir(exist_ok=True)
    path = folder / ".lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"Another transfer is writing {out}.") from None
    try:
        check_is_new(out)
        _claim(folder, task)
        yield Chunks(out, folder)
    finally:
        # Before the release, lest it is that of another process. Windows removes it then.
        with suppress(OSError):
            path.unlink()
        lock.release()
        remove_if_empty(folder)


class Chunks:
    """The matrix of an unfinished result, each chunk of rows a file.

    Parameters
    ----------
    out
        The ``.h5ad``, ``.h5mu`` or ``.zarr`` to write.
    folder
        The folder with the files.
    """

    def __init__(self, out: Path, folder: Path) -> None:
        self._out, self._folder = out, folder

    def saved(self) -> dict[int, str]:
        """Digests of the cells that the saved chunks were predicted from, by their number."""
        return {_number_of(file): file.stem.split("-")[1] for file in self._files()}

    def save(self, number: int, cells: str, matrix: np.ndarray | sparse.csr_matrix) -> None:
        """Save a chunk, completely or not at all, with a digest of its cells."""
        with atomic_write(self._folder / f"{number:06d}-{cells}.npz") as unfinished:
            if sparse.issparse(matrix):
                sparse.save_npz(unfinished, matrix, compressed=False)
            else:
                np.savez(unfinished, dense=matrix)

    def join(self, skeleton: AnnData | MuData, modality: str | None, layer: str | None) -> None:
        """Write the result, completely or not at all, and remove the chunks.

        Parameters
        ----------
        skeleton
            The result without its matrix.
        modality
            Modality that the matrix belongs to, if the result is a MuData.
        layer
            Layer to write the matrix to as well as to ``X``, if any.

        Raises
        ------
        OSError
            If the result can't be written. The chunks are kept.
        """
        with (
            atomic_write(self._out) as unfinished,
            _settled_sharding(),
            _opened(unfinished, skeleton) as (root, check),
        ):
            group = root if modality is None else root["mod"][modality]
            places = [(group, "X")] + ([] if layer is None else [(group["layers"], layer)])
            for number, file in enumerate(self._files()):
                # HDF5 would crash on reading what could not be written.
                check()
                block = _load(file)
                for place in places:
                    if number == 0:
                        _create(*place, block, self._dtype_of_offsets())
                    else:
                        _append(*place, block)
        # Killed processes leave unfinished ones.
        left = self._folder.glob(unfinished_of(Path("[0-9]*.npz")).name)
        remove_files(self._folder, [_task_file(self._folder), *self._files(), *left])

    def _files(self) -> list[Path]:
        return _files_in(self._folder)

    def _dtype_of_offsets(self) -> str:
        """Type for the row offsets (``indptr``) of the whole matrix, if it is sparse."""
        n_bytes = sum(file.stat().st_size for file in self._files())
        # Of each value at least one byte and a column of four bytes are stored.
        return "int32" if n_bytes // 5 <= _MAX_INT32 else "int64"


def _files_in(folder: Path) -> list[Path]:
    chunks = [file for file in folder.glob("*.npz") if _CHUNK.fullmatch(file.name)]
    return sorted(chunks, key=_number_of)


def _number_of(file: Path) -> int:
    return int(file.stem.split("-")[0])


def _task_file(folder: Path) -> Path:
    return folder / "task.json"


def _claim(folder: Path, task: dict[str, Any]) -> None:
    """Note that a folder is for the chunks of a task, or check that those in it are."""
    path = _task_file(folder)
    if not path.exists():
        # Without the file, there may be chunks that were about to be removed, of any task.
        for file in _files_in(folder):
            file.unlink()
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(task, indent=2))
    saved = json.loads(path.read_text())
    if saved != task:
        differing = sorted(key for key in task if saved.get(key) != task[key])
        raise ValueError(
            f"{folder} has parts of another transfer (they differ in {', '.join(differing)}). "
            "Remove it or choose another name."
        )


@contextmanager
def _opened(path: Path, skeleton: AnnData | MuData) -> Iterator[tuple[Any, Any]]:
    """Write a result without its matrix, and yield the file or folder open for writing."""
    is_zarr = path.suffix == ".zarr"
    if isinstance(skeleton, MuData):
        check_room(path, skeleton)
        (skeleton.write_zarr if is_zarr else skeleton.write_h5mu)(path)
    with _opened_zarr(path) if is_zarr else open_hdf5(path) as (root, check):
        if isinstance(skeleton, AnnData):
            # AnnData's own methods do so, too.
            skeleton.strings_to_categoricals()
            write_elem(root, "/", skeleton)
        yield root, check


@contextmanager
def _settled_sharding() -> Iterator[None]:
    """Don't shard arrays unless anndata is set to; as long as it isn't set, it warns at each."""
    if getattr(anndata.settings, "auto_shard_zarr_v3", False) is not None:
        yield
        return
    with anndata.settings.override(auto_shard_zarr_v3=False):
        yield


@contextmanager
def _opened_zarr(path: Path) -> Iterator[tuple[zarr.Group, Any]]:
    """Open a folder, new or not, in the format of anndata's settings, with its metadata in one file."""
    root = zarr.open_group(
        path, zarr_format=anndata.settings.zarr_write_format, use_consolidated=False
    )
    # Zarr raises errors itself.
    yield root, bool
    with warnings.catch_warnings():
        # AnnData's own methods consolidate in this format, too.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        zarr.consolidate_metadata(root.store)


def _load(path: Path) -> np.ndarray | sparse.csr_matrix:
    with np.load(path) as file:
        if "dense" in file:
            return file["dense"]
    return sparse.load_npz(path)


def _create(group: Any, name: str, block: np.ndarray | sparse.csr_matrix, offsets: str) -> None:
    """Write the first rows of a matrix that can grow."""
    # Zarr compresses without being asked.
    options: dict[str, Any] = {"compression": "gzip"} if isinstance(group, h5py.Group) else {}
    if sparse.issparse(block):
        options["indptr_dtype"] = offsets
    elif options:
        options |= {"maxshape": (None, block.shape[1]), "chunks": True}
    write_elem(group, name, block, dataset_kwargs=options)


def _append(group: Any, name: str, block: np.ndarray | sparse.csr_matrix) -> None:
    """Append rows to a matrix."""
    if sparse.issparse(block):
        sparse_dataset(group[name]).append(block)
    else:
        array = group[name]
        n_rows = array.shape[0]
        array.resize((n_rows + len(block), block.shape[1]))
        array[n_rows:] = block
