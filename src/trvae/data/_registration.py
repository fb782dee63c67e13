"""What a setup method is given, checked before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from trvae.data._cells import positions_of_genes

if TYPE_CHECKING:
    pass
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import join_names
from trvae.data._checks import (
    check_anndata,
    check_not_empty,
    check_not_lazy,
    check_unique_genes,
    get_matrix,
)
from trvae.data._mudata import with_genes

if TYPE_CHECKING:
    from anndata import AnnData

import warnings
from typing import TYPE_CHECKING

from trvae.data._checks import check_categories, check_not_view, check_numbers, name_of_matrix

if TYPE_CHECKING:
    from anndata import AnnData


def check_cells(adata: AnnData, setup_args: dict, kwargs: dict) -> None:
    """Check what a setup method is given before it changes anything.

    Parameters
    ----------
    adata
        The user's cells.
    setup_args
        The method's own arguments.
    kwargs
        What it has beside them, for :meth:`~scvi.data.AnnDataManager.register_fields`.
    """
    check_anndata(adata)
    check_not_lazy(adata)
    check_not_view(adata, "adata")
    source_registry = kwargs.get("source_registry")
    if source_registry is None and kwargs:
        raise TypeError(f"There is no argument {join_names(kwargs)}.")
    check_columns(adata, setup_args)
    layer = setup_args["layer"]
    if sparse.issparse(getattr(get_matrix(adata, layer), "_meta", None)):
        raise ValueError(
            f"{name_of_matrix(layer)} is a dask array of sparse blocks, from which no minibatches "
            "are read. Call adata.to_memory(), or open the file with "
            "anndata.read_h5ad(path, backed='r')."
        )
    if source_registry is not None:
        _check_same_genes(adata, source_registry)
        return
    _check_at_least_two_conditions(adata, setup_args["condition_key"])
    if (library_key := setup_args.get("library_key")) is not None:
        check_numbers(adata, "library_key", library_key, positive=True)
    if setup_args["labels_key"] is not None:
        _warn_of_labels_of_one_condition(adata, setup_args)


def check_columns(adata: AnnData, setup_args: dict) -> None:
    """Check that what is to be registered is there and complete."""
    check_not_empty(adata)
    get_matrix(adata, setup_args["layer"])
    check_unique_genes(adata)
    condition_key, labels_key = setup_args["condition_key"], setup_args["labels_key"]
    check_categories(adata, "condition_key", condition_key)
    if labels_key is not None:
        _check_is_other(condition_key, "labels_key", labels_key)
        check_categories(adata, "labels_key", labels_key)
    for argument, check in {
        "categorical_covariate_keys": check_categories,
        "continuous_covariate_keys": check_numbers,
    }.items():
        keys = [] if setup_args[argument] is None else setup_args[argument]
        if not isinstance(keys, list):
            raise ValueError(f"{argument}={keys!r} is not a list of columns.")
        for key in keys:
            _check_is_other(condition_key, argument, key)
            check(adata, argument, key)
            if keys.count(key) > 1:
                raise ValueError(f"{argument} names {key!r} twice.")
    if (size_factor_key := setup_args.get("size_factor_key")) is not None:
        check_numbers(adata, "size_factor_key", size_factor_key, positive=True)


def as_from_setup_anndata(registry: dict, model_name: str) -> dict:
    """Return a data module's registry as ``setup_anndata`` would have written it.

    So the model can be saved and loaded without the data module, and take an AnnData later.
    """
    theirs, fields = registry["setup_args"], dict(registry["field_registries"])
    if theirs.get("batch_key") is None:
        raise ValueError("The data module has no batch_key, which is to name the conditions.")
    if theirs.get("labels_key") is None:
        # As scvi-tools registers that there are none.
        fields[REGISTRY_KEYS.LABELS_KEY] = fields[REGISTRY_KEYS.LABELS_KEY] | {
            "state_registry": {
                "categorical_mapping": np.array([0]),
                "original_key": "_scvi_labels",
            },
            "summary_stats": {"n_labels": 1},
        }
    kept = [REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY]
    if theirs.get("categorical_covariate_keys"):
        covariates = fields[REGISTRY_KEYS.CAT_COVS_KEY]
        state = covariates["state_registry"]
        # AnnData's fields know it under another name.
        state = state | {"mappings": state.get("mappings") or state["mapping"]}
        fields[REGISTRY_KEYS.CAT_COVS_KEY] = covariates | {"state_registry": state}
        kept.append(REGISTRY_KEYS.CAT_COVS_KEY)
    if theirs.get("continuous_covariate_keys"):
        kept.append(REGISTRY_KEYS.CONT_COVS_KEY)
    arguments = (
        "layer", "labels_key", "categorical_covariate_keys", "continuous_covariate_keys",
        "size_factor_key", "library_key",
    )  # fmt: skip
    return registry | {
        "model_name": model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": {"condition_key": theirs["batch_key"]}
        | {argument: theirs.get(argument) for argument in arguments},
        "field_registries": {field: fields[field] for field in kept},
    }


def _check_same_genes(adata: AnnData, source_registry: dict) -> None:
    if not np.array_equal(adata.var_names, registered_genes(source_registry)):
        raise ValueError(
            "adata.var_names are not those of the model, in its order. "
            "prepare_query_anndata(adata, model) makes them so."
        )


def _check_at_least_two_conditions(adata: AnnData, condition_key: str) -> None:
    conditions = adata.obs[condition_key].unique()
    if len(conditions) < 2:
        raise ValueError(
            f"condition_key {condition_key!r} has only one condition, {join_names(conditions)}; "
            "a transfer needs at least two."
        )


def _check_is_other(condition_key: Any, argument: str, key: Any) -> None:
    if key == condition_key:
        raise ValueError(
            f"{argument} has {key!r}, which is condition_key: the condition is neither a label nor "
            "a covariate of its own."
        )


def _warn_of_labels_of_one_condition(adata: AnnData, setup_args: dict) -> None:
    condition_key, labels_key = setup_args["condition_key"], setup_args["labels_key"]
    groups = adata.obs[[condition_key, labels_key]].drop_duplicates()
    if groups[labels_key].is_unique:
        warnings.warn(
            f"No label of labels_key {labels_key!r} has more than one condition. Conditions are "
            "matched within labels, so that none are: leave labels_key out.",
            UserWarning,
            stacklevel=5,
        )


def registered_genes(registry: dict) -> np.ndarray:
    """Names of the columns that were registered, in order."""
    field = registry["field_registries"][REGISTRY_KEYS.X_KEY]
    return np.asarray(field["state_registry"]["column_names"])


def with_genes_of_model(
    adata: AnnData | MuData, var_names: np.ndarray, modality: str | None, genes: str = "genes"
) -> AnnData | MuData:
    """Return the cells with the model's genes in its order: a copy unless they are so already."""
    if isinstance(adata, MuData):
        if modality is None:
            raise ValueError("The model was set up with an AnnData, so that it takes no MuData.")
        # That the modality is missing is told by what registers the MuData.
        cells = adata.mod.get(modality)
        if cells is None or (of_model := with_genes_of_model(cells, var_names, None)) is cells:
            return adata
        return with_genes(adata, modality, of_model)
    if modality is not None:
        raise ValueError(
            f"The model was set up with a MuData, so that it takes no {type(adata).__name__}."
        )
    check_anndata(adata)
    check_not_lazy(adata)
    if np.array_equal(adata.var_names, var_names):
        return adata
    return adata[:, positions_of_genes(adata, var_names, genes)].copy()
