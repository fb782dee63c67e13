"""Named arrays in a folder, each set of them complete or absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trvae.io._atomic import annotate_os_errors, atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Arrays = dict[str, np.ndarray]


def save_arrays(folder: Path, name: str, arrays: Arrays) -> None:
    """Save arrays under a name; an ``OSError`` if they can't be written."""
    with annotate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{name}.npz") as unfinished:
        np.savez(unfinished, allow_pickle=False, **arrays)


def read_arrays(folder: Path, names: Iterable[str]) -> dict[str, Arrays]:
    """Return those of the named sets of arrays that the folder has."""
    paths = {name: folder / f"{name}.npz" for name in names}
    found = {}
    for name, path in paths.items():
        if path.exists():
            try:
                with np.load(path) as file:
                    found[name] = dict(file)
            # numpy and zipfile raise errors of many kinds.
            except Exception as error:
                raise ValueError(
                    f"{path} is damaged ({error}). Remove it to compute it again."
                ) from error
    return found
