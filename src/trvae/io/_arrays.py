"""Named arrays in a folder, each set of them complete or absent."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from trvae.io._atomic import annotate_os_errors, atomic_write, remove_files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Arrays = dict[str, np.ndarray]


def save_arrays(folder: Path, name: str, arrays: Arrays) -> None:
    """Save arrays under a name; an ``OSError`` if they can't be written."""
    with annotate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(_file_of(folder, name)) as unfinished:
        np.savez(unfinished, allow_pickle=False, **arrays)


def remove_arrays(folder: Path, names: Iterable[str]) -> None:
    """Remove arrays with these names, and the folder if nothing else is in it."""
    remove_files(folder, [_file_of(folder, name) for name in names])


def read_arrays(folder: Path, names: Iterable[str]) -> dict[str, Arrays]:
    """Return those of the named sets of arrays that the folder has."""
    found = {}
    for name in names:
        path = _file_of(folder, name)
        if path.exists():
            try:
                with np.load(path) as file:
                    found[name] = dict(file)
            except (EOFError, ValueError, BadZipFile, zlib.error) as error:
                raise ValueError(
                    f"{path} is damaged ({error}). Remove it to compute it again."
                ) from error
    return found


def _file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"
