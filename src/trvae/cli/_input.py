"""Read cells from files, as a model takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr
from anndata import AnnData, read_h5ad, read_zarr
from anndata.experimental import read_lazy
from mudata import MuData, read_h5mu
from mudata import read_zarr as read_zarr_of_mudata

from trvae.data._mudata import cells_of, places_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trvae import TRVAE


def read_for(model: TRVAE, path: Path, modality: str, *, lazily: bool = False) -> AnnData | MuData:
    """Read cells for a model: of a MuData one modality, unless the model is of MuData."""
    cells = read(path, lazily=lazily)
    if model.registered_data.modality is not None:
        return cells
    return as_anndata(cells, modality, **model.registry["setup_args"])


def read(path: Path, *, lazily: bool = False) -> AnnData | MuData:
    """Read a file or a zarr store; lazily, leave the matrices on disk."""
    try:
        match path.suffix:
            case ".zarr" if zarr.open_group(path, mode="r").attrs.get("encoding-type") == "MuData":
                return read_zarr_of_mudata(path)
            case ".zarr":
                return read_lazy(path) if lazily else read_zarr(path)
            case ".h5ad":
                return read_h5ad(path, backed="r" if lazily else None)
            case ".h5mu":
                return read_h5mu(path, backed="r" if lazily else None)
    except OSError as error:
        raise OSError(f"{path} can't be read: {error}") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        # Of other files in these formats, packages raise errors of many kinds.
        raise ValueError(f"{path} is not an AnnData or MuData: {error}") from error
    raise ValueError(f"{path} must be an .h5ad, .h5mu or .zarr file.")


def as_anndata(
    cells: AnnData | MuData, modality: str, *, layer: str | None, **keys: Any
) -> AnnData:
    """Return an AnnData as it is, and the modality of a MuData with the columns ``keys``."""
    if isinstance(cells, AnnData):
        return cells
    return cells_of(cells, {"rna_layer": layer} | keys | places_of(cells, modality, keys))


def value_named(name: str, values: Iterable[Any]) -> Any:
    """Return the value with this name: conditions may be numbers, but arguments are text."""
    return next((value for value in values if str(value) == name), name)
