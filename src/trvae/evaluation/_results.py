"""Results of an evaluation, kept on disk as they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trvae.io._atomic import atomic_write

if TYPE_CHECKING:
    pass


_RESULTS, _SETTINGS = "results.jsonl", "settings.json"


class _Results:
    """Rows of measures, kept in a folder (if there is one) as soon as they are there."""

    def __init__(self, folder: str | Path | None, fingerprint: dict):
        self._rows: dict[str, dict] = {}
        self._path: Path | None = None
        if folder is not None:
            self._path = Path(folder) / _RESULTS
            self._check_settings(Path(folder), fingerprint)
            self._read(self._path)

    def _check_settings(self, folder: Path, fingerprint: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / _SETTINGS
        if settings.exists():
            before = self._read_settings(settings)
            if before != fingerprint:
                differing = [key for key in fingerprint if before.get(key) != fingerprint[key]]
                raise ValueError(
                    f"{folder} has results of other data or settings (they differ in "
                    f"{', '.join(differing)}). Name another folder."
                )
        else:
            with atomic_write(settings) as unfinished:
                unfinished.write_text(json.dumps(fingerprint, indent=2) + "\n")

    @staticmethod
    def _read_settings(path: Path) -> dict:
        try:
            settings = json.loads(path.read_text())
            if not isinstance(settings, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}). Name another folder, or remove the file if the "
                "results beside it are of the same data and settings."
            ) from error
        return settings

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        text, complete = path.read_text(), ""
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            # An interruption can leave the last line unfinished.
            if line.endswith("\n"):
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict) or "key" not in record:
                        raise ValueError("it is no result")
                except ValueError as error:
                    raise ValueError(
                        f"Line {number} of {path} is damaged ({error}). Remove it, so that it is "
                        "computed again, or name another folder."
                    ) from error
                name = record.pop("key")
                self._rows[name] = {
                    measure: np.nan if value is None else value
                    for measure, value in record.items()
                }
                complete += line
        if complete != text:
            with atomic_write(path) as unfinished:
                unfinished.write_text(complete)

    @staticmethod
    def _name(key: tuple) -> str:
        return json.dumps(key, default=str)

    def __contains__(self, key: tuple) -> bool:
        return self._name(key) in self._rows

    def __getitem__(self, key: tuple) -> dict:
        return self._rows[self._name(key)]

    def add(self, key: tuple, row: dict) -> None:
        """Keep a row unless there is one already."""
        if key in self:
            return
        name = self._name(key)
        self._rows[name] = row
        if self._path is not None:
            # JSON knows no NaN.
            values = {m: None if np.isnan(value) else float(value) for m, value in row.items()}
            with self._path.open("a") as file:
                file.write(json.dumps({"key": name, **values}) + "\n")
