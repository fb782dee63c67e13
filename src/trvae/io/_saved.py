"""Saved models: reading and checking one before it is loaded."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import torch
from anndata import read_h5ad
from scvi import REGISTRY_KEYS
from scvi.data.fields import LayerField
from scvi.model.base._constants import SAVE_KEYS

from trvae._utils._arguments import join_names
from trvae._utils._seeds import seeded
from trvae.io._atomic import remove
from trvae.io._plain import DAMAGE, OtherThingsError, holds_left_out, read_torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from mudata import MuData


# Increment when files change such that an older or newer version can't read them as they are.
FORMAT_VERSION = 2

# Until format 1, the weight of the encoder's input layer was stored transposed.
_INPUT_WEIGHT = "encoder.hidden.layers.0.map.linear.weight"


_SETUP_METHODS = ("setup_anndata", "setup_mudata")


_PYRO = "pyro_param_store"


_TRUST = (
    "If you saved it yourself, or trust who did to run code here, load(..., trusted=True) loads "
    "what is no plain data, such as conditions that are dates."
)


@dataclass(frozen=True)
class SavedModel:
    """What is in a folder of a saved model."""

    path: Path
    """Its ``model.pt``."""
    prefix: str
    """What the names of the files begin with."""
    content: dict[str, Any]
    """What is in ``model.pt``: weights, genes and attributes."""

    @classmethod
    def read(
        cls, dir_path: str | Path, prefix: str | None = None, *, trusted: bool = False
    ) -> SavedModel:
        """Read a model's file, once, without running anything in it unless it is trusted.

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            What the names of its files begin with.
        trusted
            Whether the file may hold any object, which can run code when it is read.

        Raises
        ------
        ValueError
            If there is no such file, it is damaged, it holds other things than tensors and plain
            data, or no model, or it is of a newer version.
        """
        check_prefix(prefix)
        prefix = prefix or ""
        path = Path(dir_path) / f"{prefix}{SAVE_KEYS.MODEL_FNAME}"
        if not path.is_file():
            raise ValueError(f"No model is saved in {str(dir_path)!r}: there is no {path.name}.")
        if trusted:
            file = io.BytesIO(path.read_bytes())
            content = torch.load(file, map_location="cpu", weights_only=False)
        else:
            try:
                content = read_torch(path)
            except OtherThingsError as error:
                raise ValueError(f"{error} {_TRUST}") from error
        saved = cls(path, prefix, content)
        saved._check_content()
        return saved

    @property
    def registry(self) -> dict[str, Any]:
        """What was registered of the cells."""
        return self._attributes["registry_"]

    @property
    def _attributes(self) -> dict[str, Any]:
        return self.content[SAVE_KEYS.ATTR_DICT_KEY]

    def check_is_of(self, model_class: type, also: list[str] | None = None) -> None:
        """Check that it is a model of a class, with all that makes one.

        Parameters
        ----------
        model_class
            The class.
        also
            Names of other classes that will do.

        Raises
        ------
        ValueError
            If it is of another class, or parts are missing or don't fit each other.
        """
        found, name = self.registry.get("model_name"), model_class.__name__
        if found not in [name, *(also or [])]:
            raise ValueError(f"{self.path} holds a model of the class {found}, not {name}.")
        if self.registry.get("setup_method_name", _SETUP_METHODS[0]) not in _SETUP_METHODS:
            raise ValueError(
                f"{self.path} is forged: it names another method than a setup method."
            )
        weights = dict(self.content[SAVE_KEYS.MODEL_STATE_DICT_KEY])
        weights.pop(_PYRO, None)
        try:
            found_shapes = shapes_of(weights)
            arguments = self._attributes["init_params_"]
            settings = dict(arguments["non_kwargs"])
            for others in arguments["kwargs"].values():
                settings |= others
            # There, weights have a shape but take no memory, however large forged settings are.
            with torch.device("meta"):
                model = model_class(registry=self.registry, **settings)
            shapes = shapes_of(model.module.state_dict())
        except DAMAGE as error:
            raise ValueError(f"{self.path} does not hold a whole {name}: {error}") from error
        if shapes != found_shapes:
            differing = [
                key for key in shapes | found_shapes if shapes.get(key) != found_shapes.get(key)
            ]
            raise ValueError(
                f"The weights in {self.path} don't fit its settings: {join_names(differing)}."
            )

    def cells(self) -> AnnData | MuData | None:
        """The cells saved with the model, or ``None``.

        Raises
        ------
        ValueError
            If their file can't be read, or they are not as many as the model's.
        """
        is_mudata = self.registry.get("setup_method_name") == "setup_mudata"
        path = self.path.with_name(file_of_cells(self.prefix, is_mudata))
        if not path.exists():
            return None
        try:
            # MuData draws names for columns that it makes for a while.
            with seeded(0):
                cells = mudata.read_h5mu(path) if is_mudata else read_h5ad(path)
        except Exception as error:
            raise ValueError(f"{path} can't be read, so it may be damaged: {error}") from error
        # A model that is saved without cells leaves those there that were saved before.
        field = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]
        n_cells = field["summary_stats"].get(LayerField.N_CELLS_KEY, cells.n_obs)
        if cells.n_obs != n_cells:
            raise ValueError(
                f"{path} has {cells.n_obs} cells, but the model beside it is of {n_cells}: they "
                "are another model's. Give the model's cells, load(dir_path, adata), or "
                "adata=False to load it without, and remove the file."
            )
        return cells

    @contextmanager
    def in_private_folder(self) -> Iterator[str]:
        """A folder with the model as it was checked, which no one else can change."""
        log = logging.getLogger("scvi.data._download")
        with TemporaryDirectory() as folder:
            torch.save(self.content, Path(folder) / SAVE_KEYS.MODEL_FNAME)

            # scvi-tools tells which file it has found.
            def is_of_other_files(record: logging.LogRecord) -> bool:
                return folder not in record.getMessage()

            log.addFilter(is_of_other_files)
            try:
                yield folder
            finally:
                log.removeFilter(is_of_other_files)

    def _check_content(self) -> None:
        kinds = {
            SAVE_KEYS.MODEL_STATE_DICT_KEY: dict,
            SAVE_KEYS.VAR_NAMES_KEY: np.ndarray | dict,
            SAVE_KEYS.ATTR_DICT_KEY: dict,
        }
        content = self.content
        is_model = isinstance(content, dict) and all(
            isinstance(content.get(key), kind) for key, kind in kinds.items()
        )
        if not is_model or not isinstance(self._attributes.get("registry_"), dict):
            raise ValueError(f"{self.path} holds something, but no model of scvi-tools.")
        attributes = self._attributes
        version = attributes.pop("format_version_", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(
                f"{self.path} is of format {version}, newer than {FORMAT_VERSION}, which this "
                "version of trvae-tools reads. Upgrade it: pip install --upgrade trvae-tools"
            )
        weights = content[SAVE_KEYS.MODEL_STATE_DICT_KEY]
        if version < 2 and torch.is_tensor(weight := weights.get(_INPUT_WEIGHT)):
            weights[_INPUT_WEIGHT] = weight.transpose(0, -1).contiguous()
        # scvi-tools saves what is named so, and sets all that it finds.
        names = map(str, attributes)
        if forged := [name for name in names if name[:1] == "_" or name[-1:] != "_"]:
            raise ValueError(f"{self.path} is forged: it has attributes {join_names(forged)}.")
        history = attributes.get("history_")
        try:
            # A model that was not saved by its own method has tables, which are not read.
            tables = None if holds_left_out(history) else history_as_tables(history)
        except DAMAGE as error:
            raise ValueError(f"{self.path} holds a history that can't be read: {error}") from error
        attributes["history_"] = tables
        if holds_left_out(content):
            raise ValueError(
                f"{self.path} holds tables of pandas, which are no plain data. {_TRUST}"
            )


def model_file(dir_path: str | Path, prefix: str | None) -> Path:
    """Path of a saved model's weights and attributes."""
    return Path(dir_path) / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"


def file_of_cells(prefix: str | None, is_mudata: bool) -> str:
    """Name of the file with the cells that are saved beside a model."""
    return f"{prefix or ''}{SAVE_KEYS.MDATA_FNAME if is_mudata else SAVE_KEYS.ADATA_FNAME}"


def remove_saved(folder: Path, prefix: str | None) -> None:
    """Remove a saved model with its cells, and the folder if nothing else is in it.

    Parameters
    ----------
    folder
        Where it was saved.
    prefix
        What the names of its files begin with.
    """
    for name in (SAVE_KEYS.MODEL_FNAME, SAVE_KEYS.ADATA_FNAME, SAVE_KEYS.MDATA_FNAME):
        remove(folder / f"{prefix or ''}{name}")
    if not any(folder.iterdir()):
        folder.rmdir()


def check_prefix(prefix: str | None) -> None:
    """Raise a ``ValueError`` unless what the names of files begin with keeps them in the folder."""
    if prefix is not None and (not isinstance(prefix, str) or set(prefix) & {"/", "\\"}):
        raise ValueError(
            f"prefix={prefix!r} is not what names of files can begin with: a string without a "
            "slash or backslash."
        )


def shapes_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Shape of each of the weights, by name."""
    return {name: weight.shape for name, weight in weights.items()}


def history_as_arrays(history: dict[str, pd.DataFrame] | None) -> dict[str, dict] | None:
    """A model's history as plain data.

    Parameters
    ----------
    history
        Tables of one column each.
    """
    if history is None:
        return None
    return {
        name: {
            "values": table.iloc[:, 0].to_numpy(),
            "index": table.index.to_numpy(),
            "index_name": table.index.name,
        }
        for name, table in history.items()
    }


def history_as_tables(history: dict[str, Any] | None) -> dict[str, pd.DataFrame] | None:
    """A history as scvi-tools has it, from what :func:`history_as_arrays` returned.

    Parameters
    ----------
    history
        Tables in place of arrays stay as they are.
    """
    if history is None:
        return None
    return {
        name: table
        if isinstance(table, pd.DataFrame)
        else pd.DataFrame(
            {name: table["values"]}, index=pd.Index(table["index"], name=table["index_name"])
        )
        for name, table in history.items()
    }
