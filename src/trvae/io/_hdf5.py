"""Writing HDF5 on a disk that may be full."""

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


# Of a file of some hundred elements.
_OVERHEAD_OF_HDF5 = 2**20


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
def open_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
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
    with open_hdf5(path) as (root, _):
        write_anndata(root, adata, dataset_kwargs)


def write_anndata(root: Any, adata: AnnData, dataset_kwargs: dict[str, Any]) -> None:
    # As AnnData itself does before it writes.
    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    write_elem(root, "/", adata, dataset_kwargs=dataset_kwargs)
