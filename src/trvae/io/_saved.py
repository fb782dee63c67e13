"""Models on disk: which files make one, and the checks before one is loaded."""

from __future__ import annotations

import inspect
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

from trvae._scvi import DEFAULT_LABELS_KEY, LOGGER_OF_FILES
from trvae._utils._arguments import is_integer, join_names
from trvae._utils._seeds import seeded
from trvae.data._mudata import anndata_arguments
from trvae.data._registered import RegisteredData
from trvae.io._reading import NotPlainDataError, read_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData
    from mudata import MuData

# Increment when files change such that an older or newer version can't read them as they are.
FORMAT_VERSION = 2

# scvi-tools' file names and keys.
MODEL_FILE, ANNDATA_FILE, MUDATA_FILE = "model.pt", "adata.h5ad", "mdata.h5mu"
_WEIGHTS, _GENES, _ATTRIBUTES, _PYRO = (
    "model_state_dict", "var_names", "attr_dict", "pyro_param_store",
)  # fmt: skip
# Attribute with the digest of the cells saved beside a model, ``None`` if there are none.
_DIGEST = "cells_digest_"
# What a model, its networks and pandas raise when they are made of forged values.
_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class SavedModel:
    """What is in the folder of a saved model."""

    path: Path
    """Its ``model.pt``."""
    prefix: str
    """Prefix of its files' names."""
    content: dict[str, Any]
    """What is in ``model.pt``: weights, genes and attributes."""

    @classmethod
    def read(
        cls, dir_path: str | Path, prefix: str | None = None, *, trusted: bool = False
    ) -> SavedModel:
        """Read a model's file, once, without running code in it unless it is trusted.

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            Prefix of its files' names.
        trusted
            Whether the file may hold any object, which can run code when it is read.

        Raises
        ------
        ValueError
            If there is no such file, it is damaged, holds anything but tensors and plain data or no
            model, or is of a newer version.
        """
        check_prefix(prefix)
        prefix = prefix or ""
        path = model_file(dir_path, prefix)
        if not path.is_file():
            raise ValueError(f"No model is saved in {str(dir_path)!r}: there is no {path.name}.")
        if trusted:
            file = io.BytesIO(path.read_bytes())
            try:
                content = torch.load(file, map_location="cpu", weights_only=False)
            # It may hold anything, so reading it may raise anything.
            except Exception as error:
                raise ValueError(f"{path} can't be read, so it may be damaged: {error}") from error
        else:
            try:
                content = read_torch(path)
            except NotPlainDataError as error:
                raise ValueError(
                    f"{error} If you trust who saved it to run code here, load(..., trusted=True) "
                    "also loads other objects, such as conditions that are dates."
                ) from error
        _check_content(path, content)
        return cls(path, prefix, content)

    @property
    def registry(self) -> dict[str, Any]:
        """What was registered of the cells."""
        return self.content[_ATTRIBUTES]["registry_"]

    def check_is_of(self, model_class: type, also: list[str] | None = None) -> None:
        """Check that it is a complete model of a class.

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
        saved_class, name = self.registry.get("model_name"), model_class.__name__
        if saved_class not in [name, *(also or [])]:
            raise ValueError(f"{self.path} holds a model of class {saved_class}, not {name}.")
        # Registries of minified models don't name it.
        setup_method = self.registry.get("setup_method_name", "setup_anndata")
        if setup_method not in ("setup_anndata", "setup_mudata"):
            raise ValueError(f"{self.path} is forged: its setup method is {setup_method!r}.")
        attributes = self.content[_ATTRIBUTES]
        try:
            setup = getattr(model_class, setup_method)
            _check_setup(setup, self.registry["setup_args"])
            _check_fields(self.registry)
            saved_shapes = shapes_of(self.content[_WEIGHTS])
            arguments = attributes["init_params_"]
            settings = dict(arguments["non_kwargs"])
            for others in arguments["kwargs"].values():
                settings |= others
            # There, weights have a shape but take no memory, however large forged settings are.
            with torch.device("meta"):
                model = model_class(registry=self.registry, **settings)
                model.mapping_ = attributes.get("mapping_")
                model._prepare_mapped()
            shapes = shapes_of(model.module.state_dict())
        except _UNFIT as error:
            raise ValueError(f"{self.path} does not hold a complete {name}: {error}") from error
        if differing := [
            key for key in shapes | saved_shapes if shapes.get(key) != saved_shapes.get(key)
        ]:
            raise ValueError(
                f"The weights in {self.path} don't fit its settings: {join_names(differing)}."
            )

    def cells(self) -> AnnData | MuData | None:
        """The cells saved with the model, or ``None``.

        Raises
        ------
        ValueError
            If their file can't be read, or their number is not the model's.
        """
        is_mudata = self.registry.get("setup_method_name") == "setup_mudata"
        path = self.path.with_name(file_of_cells(self.prefix, is_mudata))
        attributes = self.content[_ATTRIBUTES]
        # Those of others. Older models have no digest.
        if not path.exists() or (_DIGEST in attributes and attributes[_DIGEST] is None):
            return None
        try:
            # MuData draws names for temporary columns.
            with seeded(0):
                cells = mudata.read_h5mu(path) if is_mudata else read_h5ad(path)
        # What HDF5 and anndata raise for a damaged file is not documented.
        except Exception as error:
            raise ValueError(f"{path} can't be read, so it may be damaged: {error}") from error
        if not self._has_saved(cells):
            raise ValueError(
                f"The cells in {path} are not those that the model beside it was saved with. Give "
                "the model's cells, load(dir_path, adata), or adata=False to load it without, and "
                "remove the file."
            )
        return cells

    def _has_saved(self, cells: AnnData | MuData) -> bool:
        attributes, known = self.content[_ATTRIBUTES], RegisteredData(self.registry)
        if _DIGEST in attributes:
            return attributes[_DIGEST] == known.digest(cells)
        # Of older models, only the number of cells is known.
        statistics = self.registry["field_registries"][REGISTRY_KEYS.X_KEY]["summary_stats"]
        return cells.n_obs == statistics.get(LayerField.N_CELLS_KEY, cells.n_obs)

    @contextmanager
    def in_private_folder(self) -> Iterator[str]:
        """A folder with the model as it was checked, which no one else can change."""
        log = logging.getLogger(LOGGER_OF_FILES)
        with TemporaryDirectory() as folder:
            torch.save(self.content, Path(folder) / MODEL_FILE)

            # scvi-tools logs which file it has found.
            def is_of_other_files(record: logging.LogRecord) -> bool:
                return folder not in record.getMessage()

            log.addFilter(is_of_other_files)
            try:
                yield folder
            finally:
                log.removeFilter(is_of_other_files)


def _check_content(path: Path, content: Any) -> None:
    """Check what a model's file holds, and make its history that of scvi-tools."""
    kinds = {_WEIGHTS: dict, _GENES: np.ndarray | dict, _ATTRIBUTES: dict}
    if not has_kinds(content, kinds) or not has_kinds(content[_ATTRIBUTES], {"registry_": dict}):
        raise ValueError(f"{path} is not a model of scvi-tools.")
    attributes = content[_ATTRIBUTES]
    version = attributes.pop("format_version_", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}, but this version of trvae-tools reads formats up to "
            f"{FORMAT_VERSION}. Install a newer version of trvae-tools."
        )
    weights = content[_WEIGHTS]
    arguments = attributes.get("init_params_")
    # In format 1, the MMD was always summed over pairs of conditions.
    if version < 2 and has_kinds(arguments, {"non_kwargs": dict}):
        arguments["non_kwargs"].setdefault("mmd_reduction", "sum")
    # scvi-tools saves the attributes that are named so, and sets all that it finds.
    names = map(str, attributes)
    if forged := [name for name in names if name.startswith("_") or not name.endswith("_")]:
        raise ValueError(f"{path} is forged: it has attributes {join_names(forged)}.")
    if not has_kinds(attributes["registry_"], {"setup_args": dict, "field_registries": dict}):
        raise ValueError(f"{path} does not say how its model's cells were set up.")
    try:
        attributes["history_"] = history_as_tables(attributes.get("history_"))
    except _UNFIT as error:
        raise ValueError(f"{path} holds a history that can't be read: {error}") from error
    # scvi-tools saves parameters of Pyro models with every model; ours has none.
    weights.pop(_PYRO, None)


def has_kinds(values: Any, kinds: dict[str, Any]) -> bool:
    """Whether what was read is a dictionary with these keys, and values of these types."""
    return isinstance(values, dict) and all(
        isinstance(values.get(key), kind) for key, kind in kinds.items()
    )


def _check_setup(setup: Callable[..., None], arguments: dict[str, Any]) -> None:
    """Check a setup method's arguments other than the data."""
    signature = inspect.signature(setup)
    signature.bind(None, **arguments)
    if unknown := arguments.keys() - signature.parameters:
        raise ValueError(f"{setup.__name__} has no argument {join_names(unknown)}.")
    modalities = arguments.get("modalities", {"rna_layer": None})
    names = [name for key, name in arguments.items() if key.endswith(("_key", "layer"))]
    names += [modalities["rna_layer"], *modalities.values()]
    if not all(isinstance(name, str | None) for name in names):
        raise ValueError(f"{arguments} does not name columns, layers and modalities.")


def _check_fields(registry: dict[str, Any]) -> None:
    """Check that the registered fields are complete and belong to the columns set up."""
    fields, keys = registry["field_registries"], REGISTRY_KEYS
    genes, conditions, labels, categorical, continuous = (
        fields.get(key, {}).get("state_registry", {})
        for key in (
            keys.X_KEY, keys.BATCH_KEY, keys.LABELS_KEY, keys.CAT_COVS_KEY, keys.CONT_COVS_KEY,
        )
    )  # fmt: skip
    numbers = {name: n for field in fields.values() for name, n in field["summary_stats"].items()}
    if not all(map(is_integer, numbers.values())):
        raise ValueError("numbers of cells, genes and categories are missing.")
    categories = categorical.get("mappings", {})
    for names, n in [
        (genes["column_names"], numbers["n_vars"]),
        (genes["column_names"], genes["n_vars"]),
        (conditions["categorical_mapping"], numbers["n_batch"]),
        (labels["categorical_mapping"], numbers["n_labels"]),
        *zip(categories.values(), categorical.get("n_cats_per_key", []), strict=True),
    ]:
        is_list = isinstance(names, list | np.ndarray) and np.shape(names) == (n,)
        if not is_list or len(np.unique(names)) != n:
            raise ValueError(f"{names!r} are not {n} different names.")
    arguments = anndata_arguments(registry["setup_args"])
    default: Any
    for argument, registered, default in [
        ("condition_key", conditions["original_key"], None),
        ("labels_key", labels["original_key"], DEFAULT_LABELS_KEY),
        ("categorical_covariate_keys", list(categories), []),
        ("continuous_covariate_keys", list(continuous.get("columns", [])), []),
    ]:
        given = arguments[argument]
        if registered != (default if given is None else given):
            raise ValueError(f"it was set up with {argument}={given!r}, not {registered!r}.")


def model_file(dir_path: str | Path, prefix: str | None) -> Path:
    """Path of the file with a model's weights and attributes."""
    return Path(dir_path) / f"{prefix or ''}{MODEL_FILE}"


def file_of_cells(prefix: str | None, is_mudata: bool) -> str:
    """Name of the file with the cells that are saved beside a model."""
    return f"{prefix or ''}{MUDATA_FILE if is_mudata else ANNDATA_FILE}"


def digest_of_saved_cells(folder: Path, prefix: str | None) -> str | None:
    """Digest of the cells that were saved with the model in a folder, ``None`` if there are none."""
    try:
        return SavedModel.read(folder, prefix).content[_ATTRIBUTES].get(_DIGEST)
    except ValueError:
        return None


def check_prefix(prefix: str | None) -> None:
    """Raise a ``ValueError`` unless the prefix of files' names keeps them in their folder."""
    if prefix is not None and (not isinstance(prefix, str) or set(prefix) & {"/", "\\"}):
        raise ValueError(
            f"prefix={prefix!r} must be a string without a slash or backslash, as file names "
            "begin with it."
        )


def shapes_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Shape of each of the weights, by name."""
    return {name: weight.shape for name, weight in weights.items()}


def history_as_arrays(history: dict[str, pd.DataFrame] | None) -> dict[str, dict] | None:
    """Turn a model's history into plain data.

    Parameters
    ----------
    history
        Tables of one column each, by name.
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
    """Turn what :func:`history_as_arrays` returned into scvi-tools' tables.

    Parameters
    ----------
    history
        Values that are tables already stay as they are.
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
