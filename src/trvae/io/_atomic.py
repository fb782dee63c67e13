"""Files and folders that are written completely or not at all, even if the process is killed."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TRIES, _SECONDS_BETWEEN_TRIES = 20, 0.05


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to, which is renamed to ``path`` at the end.

    Parameters
    ----------
    path
        File or folder to write.

    Raises
    ------
    OSError
        If it can't be written.
    """
    unfinished = unfinished_of(path)
    with annotate_os_errors(path), _removed_afterwards(unfinished):
        yield unfinished
        unfinished.replace(path)


def unfinished_of(path: Path) -> Path:
    """Where :func:`atomic_write` writes a file or folder until it is complete."""
    return path.with_name(f".{path.name}.unfinished{path.suffix}")


def write_first(path: Path, text: str) -> None:
    """Write a file unless there is one, also if other processes try to do so at the same time.

    Parameters
    ----------
    path
        File to write.
    text
        What it is to contain.

    Raises
    ------
    OSError
        If it can't be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    with annotate_os_errors(path), _removed_afterwards(unfinished):
        unfinished.write_text(text)
        try:
            os.link(unfinished, path)
        except OSError:
            # Not every disk has hard links.
            if not path.exists():
                unfinished.replace(path)


@contextmanager
def atomic_update(folder: Path, part: str = "") -> Iterator[Path]:
    """Yield a folder to create and fill, whose files are moved to ``folder`` at the end.

    It can have folders, too, but no files deeper than these.

    Parameters
    ----------
    folder
        May exist; files in it that are not replaced stay.
    part
        Name of what is written, such as a prefix, if other parts may be written to the folder at
        the same time.

    Raises
    ------
    OSError
        If it can't be written.
    """
    name = f".{part}.unfinished" if part else ".unfinished"
    # Inside the folder if it exists, since it may be the mount point of another disk.
    unfinished = folder / name if folder.exists() else folder.with_name(f".{folder.name}{name}")
    with annotate_os_errors(folder), _removed_afterwards(unfinished):
        yield unfinished
        # Another part may have made the folder in the meantime.
        if not folder.exists():
            unfinished.replace(folder)
            return
        for file in filter(Path.is_file, list(unfinished.rglob("*"))):
            place = folder / file.relative_to(unfinished)
            place.parent.mkdir(exist_ok=True)
            file.replace(place)


@contextmanager
def annotate_os_errors(path: Path) -> Iterator[None]:
    """Make errors of writing say which path could not be written, and why.

    Parameters
    ----------
    path
        File or folder that is written.

    Raises
    ------
    OSError
        In place of another one, or of the ``RuntimeError`` that torch and h5py can raise when the
        disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"{path} could not be written: {reason}") from error


def check_writable(folder: Path) -> None:
    """Raise a ``PermissionError`` unless files can be created in an existing folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {folder} can't be written to.")


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it, if it exists."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for tries_left in reversed(range(_TRIES)):
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            # Some of zarr's threads still write when another one has failed.
            if error.errno != errno.ENOTEMPTY or tries_left == 0:
                raise
            time.sleep(_SECONDS_BETWEEN_TRIES)


def remove_files(folder: Path, files: Iterable[Path]) -> None:
    """Remove files of a folder if they exist, and the folder if nothing else is in it."""
    for file in files:
        file.unlink(missing_ok=True)
    remove_if_empty(folder)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder unless it holds anything or is gone."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _removed_afterwards(path: Path) -> Iterator[None]:
    """Remove a path at the end, and what a killed process left there at the start."""
    remove(path)
    try:
        yield
    finally:
        remove(path)
