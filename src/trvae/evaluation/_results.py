"""Results of an evaluation, kept on disk so that it can be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from trvae import __version__
from trvae._utils._arguments import join_names
from trvae._utils._matrices import digest, digest_of_matrix
from trvae.data._checks import check_obs_column, get_matrix
from trvae.io._atomic import write_first
from trvae.metrics import MEASURES

if TYPE_CHECKING:
    from anndata import AnnData

    Row = dict[str, float]


class Results:
    """Rows of metrics by held-out label, target condition, method and seed.

    Parameters
    ----------
    folder
        Folder in which every row is saved as soon as it is added, and from which earlier rows are
        read. ``None`` keeps rows in memory only.
    fingerprint
        What the rows depend on. A folder with rows of other data or settings is refused.
    """

    def __init__(self, folder: str | Path | None, fingerprint: dict):
        self._rows: dict[str, Row] = {}
        self._settings_of_rows: dict[str, set[str | None]] = {}
        self._settings: dict[str, str | None] = {}
        self._path: Path | None = None
        if folder is not None:
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            _check_fingerprint(folder / "settings.json", fingerprint)
            self._path = folder / "results.jsonl"
            self._read(self._path)

    def check_method(self, name: str, settings: str | None) -> None:
        """Raise a ``ValueError`` if there are rows of a method with other settings.

        ``settings`` are kept with the rows of the method that are added.
        """
        others = self._settings_of_rows.get(name, set()) - {settings}
        if others:
            raise ValueError(
                f"{self._path} has results of {name!r} with other settings: "
                f"{join_names(sorted(map(str, others)))}, not {settings}. Give the method another "
                "name, or choose another folder."
            )
        self._settings[name] = settings

    def __contains__(self, key: tuple) -> bool:
        return _key_text(key) in self._rows

    def __getitem__(self, key: tuple) -> Row:
        return self._rows[_key_text(key)]

    def add(self, key: tuple, row: Row) -> None:
        """Keep a row, unless there is one with this key already.

        Another process may have added rows since; they are treated as at the start.
        """
        settings = {}
        if self._path is not None:
            self._read(self._path)
            if (name := key[2]) in self._settings:
                settings = {"settings": self._settings[name]}
                self.check_method(name, **settings)
        if key in self:
            return
        self._rows[_key_text(key)] = row
        if self._path is not None:
            # JSON has no NaN.
            values = {name: None if np.isnan(x) else float(x) for name, x in row.items()}
            line = json.dumps({"key": _key_text(key), **settings, **values})
            # What another process is writing is no unfinished line.
            with FileLock(self._path.with_name(".lock")):
                _append_line(self._path, line)

    def _read(self, path: Path) -> None:
        """Take the rows of a file."""
        for row in _read_rows(path):
            key, settings = row.pop("key"), row.pop("settings", None)
            self._rows[key] = {name: np.nan if x is None else x for name, x in row.items()}
            self._settings_of_rows.setdefault(json.loads(key)[2], set()).add(settings)


def fingerprint_of(adata: AnnData, settings: dict[str, Any]) -> dict[str, Any]:
    """Summarise what results depend on, except the methods."""
    columns = [
        check_obs_column(adata, argument, settings[argument]).to_numpy(dtype=str)
        for argument in ("condition_key", "labels_key", "library_key")
        if settings[argument] is not None
    ]
    names = [values.to_numpy(dtype=str) for values in (adata.obs_names, adata.var_names)]
    return {
        "version": __version__,
        "measures": ", ".join(MEASURES),
        "cells_and_genes": digest(*names, *columns),
        "values": digest_of_matrix(get_matrix(adata, settings["layer"])),
        **{name: None if value is None else str(value) for name, value in settings.items()},
    }


def _key_text(key: tuple) -> str:
    # 0 and np.int64(0) are the same label.
    return json.dumps(key, default=lambda x: x.item() if isinstance(x, np.generic) else str(x))


def _check_fingerprint(path: Path, fingerprint: dict) -> None:
    """Save the fingerprint if none is saved, and compare it with the saved one."""
    if not path.exists():
        write_first(path, json.dumps(fingerprint, indent=2) + "\n")
    saved = _parse(
        path.read_bytes(),
        str(path),
        "Choose another folder, or remove the file if the results beside it are of the same data "
        "and settings.",
    )
    if saved != fingerprint:
        differing = [name for name in fingerprint if saved.get(name) != fingerprint[name]]
        raise ValueError(
            f"{path.parent} has results of other data or settings (they differ in "
            f"{', '.join(differing)}). Choose another folder."
        )


def _read_rows(path: Path) -> list[dict]:
    """Read all rows, but not a last line that an interruption left unfinished."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [
        _parse(
            line,
            f"Line {number} of {path}",
            "Remove it to compute it again, or choose another folder.",
            required="key",
        )
        for number, line in enumerate(lines, start=1)
    ]


def _append_line(path: Path, line: str) -> None:
    """Add a line, in place of one that an interruption left unfinished."""
    if path.exists() and (unfinished := path.read_bytes().split(b"\n")[-1]):
        os.truncate(path, path.stat().st_size - len(unfinished))
    with path.open("a") as file:
        file.write(line + "\n")


def _parse(text: bytes, where: str, remedy: str, required: str | None = None) -> dict:
    """Read a JSON object, or raise a ``ValueError`` that says how to proceed."""
    try:
        parsed = json.loads(text)
        if not isinstance(parsed, dict):
            raise ValueError("not a JSON object")
        if required is not None and required not in parsed:
            raise ValueError(f"no {required!r}")
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error}). {remedy}") from error
    return parsed
