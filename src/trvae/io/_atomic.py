"""Writing files that are complete or absent, whatever interrupts."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_writable(folder: Path) -> None:
    """Raise a ``PermissionError`` if nothing can be written to a folder.

    Parameters
    ----------
    folder
        Which is there.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {folder} can't be written to.")


@contextmanager
def annotate_os_errors(path: Path) -> Iterator[None]:
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
def atomic_write(path: Path) -> Iterator[Path]:
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
    with annotate_os_errors(path):
        # What was killed could not tidy up.
        remove(unfinished)
        try:
            yield unfinished
            unfinished.replace(path)
        finally:
            remove(unfinished)


@contextmanager
def atomic_update(folder: Path) -> Iterator[Path]:
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
        with atomic_write(folder) as unfinished:
            yield unfinished
        return
    # Within it, as another disk can begin there.
    unfinished = folder / ".unfinished"
    with annotate_os_errors(folder):
        remove(unfinished)
        try:
            yield unfinished
            for file in unfinished.iterdir():
                file.replace(folder / file.name)
        finally:
            remove(unfinished)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
