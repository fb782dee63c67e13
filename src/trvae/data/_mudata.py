"""MuData: what a model reads from one, and the prediction in its place."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from mudata import MuData

from trvae._utils._arguments import join_names
from trvae._utils._matrices import read_rows
from trvae._utils._seeds import seeded
from trvae.data._cells import with_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np


DEFAULT_MODALITY = "rna"


# Of setup_mudata, the arguments that name a modality's layer and columns.
_LAYER = "rna_layer"


_COLUMNS = (
    "condition_key", "labels_key", "size_factor_key", "categorical_covariate_keys",
    "continuous_covariate_keys", "library_key",
)  # fmt: skip


def expression_modality(setup_args: dict) -> str | None:
    """Name of the modality with the expression, or ``None`` if an AnnData was set up."""
    return setup_args["modalities"][_LAYER] if "modalities" in setup_args else None


def as_of_anndata(setup_args: dict) -> dict:
    """Return the arguments of ``setup_mudata`` as ``setup_anndata`` takes them, if they are."""
    if "modalities" not in setup_args:
        return setup_args
    return {"layer": setup_args[_LAYER]} | {name: setup_args[name] for name in _COLUMNS}


def cells_of(mdata: MuData, setup_args: dict) -> AnnData:
    """Return an AnnData with the cells as a model reads them; its matrix is the MuData's.

    Parameters
    ----------
    mdata
        The cells, in memory or backed.
    setup_args
        Arguments of ``setup_mudata``.

    Returns
    -------
    One modality, with the columns of its ``obs`` and of ``mdata.obs``. A column that was set up
    is from where it was; it is absent if it is nowhere.

    Raises
    ------
    ValueError
        If a modality is missing or has other cells than the MuData, or a column is elsewhere than
        it was set up.
    """
    rna = _modality(mdata, _LAYER, setup_args["modalities"][_LAYER])
    of_all = [column for column in rna.obs if column not in mdata.obs]
    obs = pd.concat([mdata.obs, rna.obs[of_all]], axis=1)
    places: dict[str, str | None] = {}
    for argument, key in _registered(setup_args):
        place = setup_args["modalities"].get(argument)
        if places.setdefault(key, place) != place:
            raise ValueError(
                f"{key!r} is taken from two modalities, which takes two names: rename one column."
            )
        column = _column(mdata, argument, key, place)
        if column is not None:
            obs[key] = column.array
    layer = setup_args[_LAYER]
    return with_matrix(obs, rna.var, layer, rna.X if layer is None else rna.layers.get(layer))


def places_of(mdata: MuData, modality: str, keys: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the argument ``modalities`` that takes from a modality what ``mdata.obs`` lacks.

    Parameters
    ----------
    mdata
        The MuData.
    modality
        Name of the modality with the expression.
    keys
        Columns, by the argument of ``setup_mudata`` that names them.
    """
    lacking = {argument: modality for argument, key in _registered(keys) if key not in mdata.obs}
    return {"modalities": {_LAYER: modality} | lacking}


def with_genes(mdata: MuData, modality: str, cells: AnnData) -> MuData:
    """Return a copy in which a modality has other genes.

    Parameters
    ----------
    mdata
        The MuData.
    modality
        Name of the modality.
    cells
        To put in its place: the same cells.
    """
    copy = mdata.copy()
    copy.mod[modality] = cells
    # MuData draws names for columns that it makes for a while.
    with seeded(0):
        copy.update()
    return copy


def with_prediction(
    mdata: MuData, positions: np.ndarray, predicted: AnnData, setup_args: dict
) -> MuData:
    """Return cells of a MuData with a prediction in place of their expression.

    Parameters
    ----------
    mdata
        The measured cells.
    positions
        Which of them were predicted.
    predicted
        The prediction, with its conditions in ``obs``.
    setup_args
        Arguments of ``setup_mudata``.

    Returns
    -------
    The other modalities are as they were, but for the column of conditions, if it is there, and
    what scvi-tools registered.
    """
    modality, key = setup_args["modalities"][_LAYER], setup_args["condition_key"]
    place = setup_args["modalities"].get("condition_key")
    names, measured = predicted.obs_names, mdata.obs_names[positions]
    modalities = {}
    for name, other in mdata.mod.items():
        if name == modality:
            own = [column for column in predicted.obs if column in other.obs or column == key]
            predicted.obs = predicted.obs[own]
            modalities[name] = predicted
            continue
        rows = other.obs_names.get_indexer(measured)
        modalities[name] = _rows(other, rows[rows >= 0], names[rows >= 0])
        if name == place:
            modalities[name].obs[key] = predicted.obs[key].array[rows >= 0]
    with seeded(0):
        result = MuData(modalities)
    obs = mdata.obs.iloc[positions].set_axis(names)
    obs = obs.drop(columns=[column for column in obs if "_scvi_" in str(column)])
    # Columns of modalities can be among those of all, with the modality's name before theirs.
    columns = {key, f"{modality}:{key}", f"{place}:{key}"} & set(obs)
    for column in columns | ({key} if place is None else set()):
        obs[column] = predicted.obs[key].array
    result.obs = obs
    return result


def _registered(setup_args: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the columns that were set up, each with the argument that named it."""
    for argument in _COLUMNS:
        keys = setup_args.get(argument)
        for key in keys if isinstance(keys, list | tuple) else [keys]:
            if key is not None:
                yield argument, key


def _modality(mdata: MuData, argument: str, name: str) -> AnnData:
    if name not in mdata.mod:
        raise ValueError(
            f"modalities[{argument!r}] {name!r} is not in the MuData: {join_names(mdata.mod)}."
        )
    cells = mdata.mod[name]
    if not cells.obs_names.equals(mdata.obs_names):
        raise ValueError(
            f"The cells of mdata[{name!r}] are not those of the MuData, in its order. Make them "
            "so, such as by muon.pp.intersect_obs(mdata)."
        )
    return cells


def _column(mdata: MuData, argument: str, key: str, place: str | None) -> Any:
    """The column from where it was set up, or ``None`` if it is nowhere."""
    obs = mdata.obs if place is None else _modality(mdata, argument, place).obs
    if key in obs:
        return obs[key]
    others = {"mdata.obs": mdata.obs} | {
        f"mdata[{name!r}].obs": cells.obs for name, cells in mdata.mod.items()
    }
    for where, other in others.items():
        if key in other:
            here = "mdata.obs" if place is None else f"mdata[{place!r}].obs"
            raise ValueError(
                f"{argument} {key!r} is not in {here}, but in {where}. The argument modalities "
                "of setup_mudata tells where it is to be taken from: "
                "{" + f"{argument!r}: modality" + "}, or without it from mdata.obs."
            )
    return None


def _rows(cells: AnnData, rows: np.ndarray, names: pd.Index) -> AnnData:
    """Copy of some rows, which may come repeatedly, under other names."""
    with warnings.catch_warnings():
        # Until they have their new names.
        warnings.filterwarnings("ignore", "Observation names are not unique")
        if cells.isbacked:
            # AnnData's to_memory would close the file.
            others = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers")
            copy = AnnData(**{name: getattr(cells, name) for name in others})[rows].copy()
            copy.X = read_rows(cells.X, rows)
        else:
            copy = cells[rows].copy()
    copy.obs_names = names
    for registered in (copy.obs, copy.obsm):
        for key in [key for key in registered if str(key).startswith("_scvi_")]:
            del registered[key]
    return copy
