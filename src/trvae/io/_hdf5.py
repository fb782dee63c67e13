"""HDF5 files written so that a full disk is an error, where HDF5 itself would crash the process."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
from anndata import AnnData
from anndata.io import write_elem
from mudata import MuData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# HDF5's own bookkeeping for a few hundred arrays.
_OVERHEAD = 2**20


def write_h5ad(path: Path, adata: AnnData, **dataset_kwargs: Any) -> None:
    """Write an AnnData in the format of its own method, which would crash on a full disk.

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
    # AnnData's own method does so, too.
    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    with open_hdf5(path) as (root, _):
        write_elem(root, "/", adata, dataset_kwargs=dataset_kwargs)


@contextmanager
def open_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Open a file, new or not, to write to, with a function that raises any earlier write error.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        On closing, if anything could not be written.
    """
    path.touch()
    with _FileForHDF5(path) as file:
        try:
            with h5py.File(file, "a") as root:
                yield root, file.check
        finally:
            # HDF5's own errors follow from the first failed write.
            file.check()


class _FileForHDF5(io.FileIO):
    """A file that keeps the error of a failed write, and in memory what it can't write.

    HDF5 crashes if a write fails, or if it reads anything else than it has written.
    """

    def __init__(self, path: Path):
        super().__init__(path, "r+")
        self.error: OSError | None = None
        self.unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        position, left = self.tell(), memoryview(data)
        try:
            while self.error is None and len(left) > 0:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        if self.error is not None:
            self.unwritten.append((position, bytes(data)))
        return len(data)

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        n_read = super().readinto(buffer)
        for position, data in self.unwritten:
            first, end = max(start, position), min(start + len(buffer), position + len(data))
            if first < end:
                buffer[first - start : end - start] = data[first - position : end - position]
        return max(n_read, 0)

    def truncate(self, size: int | None = None) -> int:
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0


def check_room(path: Path, data: AnnData | MuData) -> None:
    """Raise an ``OSError`` unless there is room for a file that another package will write.

    Parameters
    ----------
    path
        The file, which does not exist yet.
    data
        What is to be written.

    Raises
    ------
    OSError
        If the disk is too full for it.
    """
    parts = data.mod.values() if isinstance(data, MuData) else [data]
    n_bytes = _OVERHEAD + int(data.obs.memory_usage(deep=True).sum())
    n_bytes += sum(map(sys.getsizeof, parts))
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        path.unlink()
    elif shutil.disk_usage(path.parent).free < n_bytes:  # on macOS and Windows
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
