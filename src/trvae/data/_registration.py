"""Validate the arguments of setup methods."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scvi import REGISTRY_KEYS

from trvae._scvi import DEFAULT_LABELS_KEY
from trvae._utils._arguments import join_names
from trvae._utils._matrices import computed, is_dask
from trvae._utils._minimums import MIN_LABELS
from trvae.data._checks import (
    check_anndata,
    check_categories,
    check_not_empty,
    check_not_lazy,
    check_not_view,
    check_numbers,
    check_unique_genes,
    get_matrix,
    name_of_matrix,
)
from trvae.data._codes import check_known, codes_of
from trvae.data._registered import RegisteredData

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scvi.data import AnnDataManager


def check_setup(adata: AnnData, setup_args: dict, kwargs: dict) -> None:
    """Check what ``setup_anndata`` is given.

    ``setup_args`` are its named arguments, ``kwargs`` those for
    :meth:`~scvi.data.AnnDataManager.register_fields`. Raises a ``ValueError`` if the cells can't be
    registered so, and a ``TypeError`` for an unknown argument.
    """
    check_anndata(adata)
    check_not_lazy(adata)
    check_not_view(adata, "adata")
    source_registry = kwargs.get("source_registry")
    if source_registry is None and kwargs:
        raise TypeError(f"unexpected arguments: {join_names(kwargs)}.")
    check_not_empty(adata)
    check_unique_genes(adata)
    layer = setup_args["layer"]
    matrix = get_matrix(adata, layer)
    if is_dask(matrix) and sparse.issparse(computed(matrix[:0])):
        raise ValueError(
            f"{name_of_matrix(layer)} is a dask array of sparse blocks, which minibatches can't be "
            "read from. Call adata.to_memory(), or open the file with "
            "anndata.read_h5ad(path, backed='r')."
        )
    _check_columns(adata, setup_args)
    if source_registry is not None:
        _check_fits(adata, source_registry, extend=kwargs.get("extend_categories", False))
        return
    _check_conditions(adata, setup_args["condition_key"])
    if (library_key := setup_args.get("library_key")) is not None:
        check_numbers(adata, "library_key", library_key, positive=True)
    if setup_args["labels_key"] is not None:
        _warn_if_few_labels_are_shared(adata, setup_args)


def check_columns_to_predict(adata: AnnData, known: RegisteredData) -> None:
    """Check that cells have the columns that a model reads, complete and with values it knows.

    Labels don't matter.
    """
    _check_columns(adata, known.arguments | {"labels_key": None})
    # Without the column, libraries are estimated.
    library_key = known.arguments.get("library_key")
    if library_key is not None and library_key in adata.obs:
        check_numbers(adata, "library_key", library_key, positive=True)
    for key, categories in known.categories().items():
        check_known(adata.obs[key], categories, f"adata.obs[{key!r}]")


def check_columns_unchanged(
    manager: AnnDataManager,
    known: RegisteredData,
    obs: pd.DataFrame,
    positions: Any,
    *,
    with_labels: bool,
) -> None:
    """Raise a ``ValueError`` if what was registered of some cells is no longer in their columns."""
    get, continuous = manager.get_from_registry, known.state(REGISTRY_KEYS.CONT_COVS_KEY)
    registered = {
        known.condition_key: get(REGISTRY_KEYS.BATCH_KEY),
        known.arguments["labels_key"]: get(REGISTRY_KEYS.LABELS_KEY),
    }
    now = {
        column: codes_of(obs[column], categories)
        for column, categories in known.categories(with_labels=with_labels).items()
        if column in obs
    }
    if known.state(REGISTRY_KEYS.CAT_COVS_KEY):
        registered |= dict(get(REGISTRY_KEYS.CAT_COVS_KEY))
    if continuous:
        registered |= dict(get(REGISTRY_KEYS.CONT_COVS_KEY))
        now |= {column: obs[column] for column in continuous["columns"] if column in obs}
    for column, values in now.items():
        if (np.ravel(registered[column])[positions] != np.asarray(values)[positions]).any():
            raise ValueError(
                f"adata.obs[{column!r}] has changed since the model was made. Make a new model, or "
                "use a copy: adata.copy()."
            )


def _check_columns(adata: AnnData, setup_args: dict) -> None:
    """Check that the columns to register are there and complete."""
    condition_key = setup_args["condition_key"]
    check_categories(adata, "condition_key", condition_key)
    labels_key = setup_args["labels_key"]
    columns = {"labels_key": [] if labels_key is None else [labels_key]}
    for argument in ("categorical_covariate_keys", "continuous_covariate_keys"):
        given = [] if setup_args[argument] is None else setup_args[argument]
        if not isinstance(given, list):
            raise ValueError(f"{argument} must be a list of columns, got {given!r}.")
        columns[argument] = given
    for argument, keys in columns.items():
        check = check_numbers if argument.startswith("continuous") else check_categories
        for key in keys:
            if key == condition_key:
                raise ValueError(
                    f"{argument} names {key!r}, which is condition_key: the condition can't be a "
                    "label or a covariate, too."
                )
            check(adata, argument, key)
            if keys.count(key) > 1:
                raise ValueError(f"{argument} names {key!r} twice.")
    if (size_factor_key := setup_args.get("size_factor_key")) is not None:
        check_numbers(adata, "size_factor_key", size_factor_key, positive=True)


def registry_of_setup_anndata(registry: dict, model_name: str) -> dict:
    """Convert a data module's registry into one that ``setup_anndata`` would have written.

    Then the model can be saved and loaded without the data module, and later take an AnnData.
    """
    arguments, fields = registry["setup_args"], dict(registry["field_registries"])
    if arguments.get("batch_key") is None:
        raise ValueError("the data module has no batch_key, which should name the conditions.")
    if arguments.get("labels_key") is None:
        # What setup_anndata registers without labels.
        fields[REGISTRY_KEYS.LABELS_KEY] = fields[REGISTRY_KEYS.LABELS_KEY] | {
            "state_registry": {
                "categorical_mapping": np.array([0]),
                "original_key": DEFAULT_LABELS_KEY,
            },
            "summary_stats": {"n_labels": 1},
        }
    kept = [REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY]
    if arguments.get("categorical_covariate_keys"):
        covariates = fields[REGISTRY_KEYS.CAT_COVS_KEY]
        state = covariates["state_registry"]
        # Fields of AnnData have another name for it.
        state = state | {"mappings": state.get("mappings") or state["mapping"]}
        fields[REGISTRY_KEYS.CAT_COVS_KEY] = covariates | {"state_registry": state}
        kept.append(REGISTRY_KEYS.CAT_COVS_KEY)
    if arguments.get("continuous_covariate_keys"):
        kept.append(REGISTRY_KEYS.CONT_COVS_KEY)
    others = (
        "layer", "labels_key", "categorical_covariate_keys", "continuous_covariate_keys",
        "size_factor_key", "library_key",
    )  # fmt: skip
    return registry | {
        "model_name": model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": {"condition_key": arguments["batch_key"]}
        | {argument: arguments.get(argument) for argument in others},
        "field_registries": {field: fields[field] for field in kept},
    }


def _check_fits(adata: AnnData, source_registry: dict, *, extend: bool) -> None:
    """Check that cells have the genes of a registry, and categories that it knows or may add."""
    known = RegisteredData(source_registry)
    for key, categories in known.categories(with_labels=True).items():
        check_known(adata.obs[key], categories, f"adata.obs[{key!r}]", extend=extend)
    if not np.array_equal(adata.var_names, known.var_names):
        raise ValueError(
            "adata.var_names differ from the model's genes or their order. Call "
            "prepare_query_anndata(adata, model) first."
        )


def _check_conditions(adata: AnnData, condition_key: Any) -> None:
    conditions = adata.obs[condition_key].unique()
    if len(conditions) < 2:
        raise ValueError(
            f"condition_key {condition_key!r} has only one condition, {join_names(conditions)}; "
            "a transfer needs at least two."
        )


def _warn_if_few_labels_are_shared(adata: AnnData, setup_args: dict) -> None:
    condition_key, labels_key = setup_args["condition_key"], setup_args["labels_key"]
    groups = adata.obs[[condition_key, labels_key]].drop_duplicates()
    n_shared = int((groups[labels_key].value_counts() > 1).sum())
    if n_shared >= MIN_LABELS:
        return
    if n_shared == 0:
        text = (
            f"No label of labels_key {labels_key!r} occurs under more than one condition. "
            "Conditions are matched within labels, so nothing is matched: leave labels_key out."
        )
    else:
        text = (
            f"Only {n_shared} of the labels of labels_key {labels_key!r} occur under more than one condition. It takes "
            f"{MIN_LABELS} to tell what a condition does to all labels from what it does to one, and "
            "to know how wrong a prediction may be."
        )
    warnings.warn(text, UserWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Stack level, for the function that asks, of the first line outside this package."""
    package, level = __name__.partition(".")[0], 0
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
