"""MuData: what a model reads from one, and the prediction in its place."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from mudata import MuData

from trvae._scvi import is_registered
from trvae._utils._arguments import join_names
from trvae._utils._matrices import read_rows
from trvae._utils._seeds import seeded
from trvae.data._cells import check_not_backed, unregistered, with_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

# Arguments of setup_mudata that name a layer and columns of a modality.
_LAYER = "rna_layer"
_COLUMNS = (
    "condition_key", "labels_key", "size_factor_key", "categorical_covariate_keys",
    "continuous_covariate_keys", "library_key",
)  # fmt: skip


def expression_modality(setup_args: dict) -> str | None:
    """Name of the modality with the expression, or ``None`` if an AnnData was set up."""
    return setup_args["modalities"][_LAYER] if "modalities" in setup_args else None


def anndata_arguments(setup_args: dict) -> dict:
    """Translate the arguments of ``setup_mudata`` into those of ``setup_anndata``."""
    if "modalities" not in setup_args:
        return setup_args
    return {"layer": setup_args[_LAYER]} | {name: setup_args[name] for name in _COLUMNS}


def cells_of(mdata: MuData, setup_args: dict) -> AnnData:
    """Return the modality with the expression as an AnnData; the matrix is not copied.

    ``obs`` has the columns of the modality and of ``mdata.obs``. A registered column is taken from
    where it was registered, and is absent if no ``obs`` has it. A ``ValueError`` is raised if a
    modality is missing or has other cells, or a column is elsewhere.
    """
    rna = _modality(mdata, _LAYER, setup_args["modalities"][_LAYER])
    of_all = [column for column in rna.obs if column not in mdata.obs]
    obs = pd.concat([mdata.obs, rna.obs[of_all]], axis=1)
    places: dict[str, str | None] = {}
    for argument, key in registered_columns(setup_args):
        place = setup_args["modalities"].get(argument)
        if places.setdefault(key, place) != place:
            raise ValueError(
                f"{key!r} would be taken from two modalities. Rename one of the columns."
            )
        column = _column(mdata, argument, key, place)
        if column is not None:
            obs[key] = column.array
    layer = setup_args[_LAYER]
    return with_matrix(obs, rna.var, layer, rna.X if layer is None else rna.layers.get(layer))


def places_of(mdata: MuData, modality: str, keys: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Make the argument ``modalities`` of ``setup_mudata`` for columns that ``mdata.obs`` may lack.

    ``keys`` are columns, by the argument that names them; those that ``mdata.obs`` lacks are taken
    from the modality with the expression.
    """
    lacking = {
        argument: modality for argument, key in registered_columns(keys) if key not in mdata.obs
    }
    return {"modalities": {_LAYER: modality} | lacking}


def with_genes(mdata: MuData, modality: str, cells: AnnData) -> MuData:
    """Copy a MuData with other genes in one modality; ``cells`` are the same cells with those."""
    check_not_backed(mdata, "Another order of genes")
    copy = unregistered(mdata.copy())
    copy.mod[modality] = cells
    # MuData draws random names for temporary columns.
    with seeded(0):
        copy.update()
    return copy


def with_prediction(
    mdata: MuData, positions: np.ndarray, predicted: AnnData, setup_args: dict
) -> MuData:
    """Put a prediction in place of the expression of a MuData.

    The cells at ``positions`` were predicted. Other modalities keep their values, without what
    scvi-tools registered. The target is in the column of conditions and in its copies, see
    :func:`_homes_of_conditions`.
    """
    modality, key = setup_args["modalities"][_LAYER], setup_args["condition_key"]
    place = setup_args["modalities"].get("condition_key")
    homes = [(place, key), *_homes_of_conditions(mdata, setup_args)]
    names, measured = predicted.obs_names, mdata.obs_names[positions]
    target = predicted.obs[key].array
    modalities = {}
    for name, other in mdata.mod.items():
        columns = [column for home, column in homes if home == name]
        if name == modality:
            for column in columns:
                predicted.obs[column] = target
            # Its own columns, and the conditions even if they are elsewhere.
            own = {*other.obs, *columns, _without_modality(mdata, key)}
            predicted.obs = predicted.obs[[column for column in predicted.obs if column in own]]
            modalities[name] = predicted
            continue
        rows = other.obs_names.get_indexer(measured)
        modalities[name] = _rows(other, rows[rows >= 0], names[rows >= 0])
        for column in columns:
            modalities[name].obs[column] = target[rows >= 0]
    with seeded(0):
        result = MuData(modalities)
    obs = mdata.obs.iloc[positions].set_axis(names)
    obs = obs.drop(columns=list(filter(is_registered, obs)))
    for home, column in homes:
        if home is None:
            obs[column] = target
    result.obs = obs
    return result


def _homes_of_conditions(mdata: MuData, setup_args: dict) -> list[tuple[str | None, str]]:
    """Where the conditions can be found: modality, ``None`` for ``mdata.obs``, and column.

    ``mdata.obs`` can repeat a modality's column, with or without the modality's name before it, and
    ``mdata.pull_obs()`` copies it anew. A column of that name is one of them if it has the same
    values.
    """
    key = setup_args["condition_key"]
    place = setup_args["modalities"].get("condition_key")
    registered = _column(mdata, "condition_key", key, place)
    if registered is None:
        return []
    name = _without_modality(mdata, key)
    names = [name, *(f"{modality}:{name}" for modality in mdata.mod)]
    frames = {None: mdata.obs} | {modality: cells.obs for modality, cells in mdata.mod.items()}
    return [
        (home, column)
        for home, obs in frames.items()
        for column in (names if home is None else [name])
        if column in obs and _equal(obs[column], registered)
    ]


def _without_modality(mdata: MuData, key: str) -> str:
    prefix, _, bare = key.partition(":")
    return bare if prefix in mdata.mod else key


def _equal(column: pd.Series, registered: pd.Series) -> bool:
    """Whether a column, perhaps of fewer cells, has the registered values."""
    return bool((column.astype(str) == registered[column.index].astype(str)).all())


def registered_columns(setup_args: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the registered columns with the argument that names each."""
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
            f"mdata[{name!r}] must have the cells of the MuData in the same order. Call "
            "muon.pp.intersect_obs(mdata), for example."
        )
    return cells


def _column(mdata: MuData, argument: str, key: str, place: str | None) -> Any:
    """The column from where it was registered, or ``None`` if no ``obs`` has it."""
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
                f"{argument} {key!r} is not in {here}, but in {where}. Pass modalities="
                f"{{{argument!r}: modality}} to setup_mudata; the default is mdata.obs."
            )
    return None


def _rows(cells: AnnData, rows: np.ndarray, names: pd.Index) -> AnnData:
    """Copy rows, possibly repeated, under new names."""
    with warnings.catch_warnings():
        # They are renamed below.
        warnings.filterwarnings("ignore", "Observation names are not unique")
        if cells.isbacked:
            # AnnData.to_memory would close the file.
            others = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers")
            copy = AnnData(**{name: getattr(cells, name) for name in others})[rows].copy()
            copy.X = read_rows(cells.X, rows)
        else:
            copy = cells[rows].copy()
    copy.obs_names = names
    for registered in (copy.obs, copy.obsm):
        for key in list(filter(is_registered, registered)):
            del registered[key]
    return copy
