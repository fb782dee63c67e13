"""What is registered of users' data, and the checks before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data.fields import (
    CategoricalJointObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from trvae._data import (
    UsedCategoricalObsField,
    check_categories,
    check_numbers,
    check_unique_genes,
    get_matrix,
    join_names,
    positions_of_genes,
)
from trvae._mudata import with_genes

if TYPE_CHECKING:
    from anndata import AnnData


def name_of_matrix(layer: str | None) -> str:
    """The matrix that was set up, as users know it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def fields_of(
    *, layer, condition_key, labels_key, categorical_covariate_keys, continuous_covariate_keys,
    size_factor_key=None, **_,
) -> list[tuple[str, type, tuple, dict]]:  # fmt: skip
    """What is registered: argument of the setup method, field, its arguments and options."""
    key = REGISTRY_KEYS
    return [
        # Whether values suit the likelihood is checked once that is known.
        ("rna_layer", LayerField, (key.X_KEY, layer), {"is_count_data": False}),
        ("condition_key", UsedCategoricalObsField, (key.BATCH_KEY, condition_key), {}),
        ("labels_key", UsedCategoricalObsField, (key.LABELS_KEY, labels_key), {}),
        (
            "size_factor_key",
            NumericalObsField,
            (key.SIZE_FACTOR_KEY, size_factor_key),
            {"required": False},
        ),
        (
            "categorical_covariate_keys",
            CategoricalJointObsField,
            (key.CAT_COVS_KEY, categorical_covariate_keys),
            {},
        ),
        (
            "continuous_covariate_keys",
            NumericalJointObsField,
            (key.CONT_COVS_KEY, continuous_covariate_keys),
            {},
        ),
    ]


def check_cells(adata: AnnData, setup_args: dict, source_registry: dict | None) -> None:
    """Check what a setup method is given before it changes anything."""
    check_columns(adata, setup_args)
    if source_registry is not None:
        _check_same_genes(adata, source_registry)
        return
    _check_at_least_two_conditions(adata, setup_args["condition_key"])
    if (library_key := setup_args.get("library_key")) is not None:
        check_numbers(adata, "library_key", library_key, positive=True)


def check_columns(adata: AnnData, setup_args: dict) -> None:
    """Check that what is to be registered is there and complete."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    get_matrix(adata, setup_args["layer"])
    check_unique_genes(adata)
    for argument in ("condition_key", "labels_key"):
        if setup_args[argument] is not None:
            check_categories(adata, argument, setup_args[argument])
    for argument, check in {
        "categorical_covariate_keys": check_categories,
        "continuous_covariate_keys": check_numbers,
    }.items():
        keys = setup_args[argument] or []
        if isinstance(keys, str):
            raise ValueError(f"{argument}={keys!r} is not a list of columns.")
        for key in keys:
            check(adata, argument, key)
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


def registered_genes(registry: dict) -> np.ndarray:
    """Names of the columns that were registered, in order."""
    field = registry["field_registries"][REGISTRY_KEYS.X_KEY]
    return np.asarray(field["state_registry"]["column_names"])


def with_genes_of_model(
    adata: AnnData | MuData, var_names: np.ndarray, modality: str | None
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
    if np.array_equal(adata.var_names, var_names):
        return adata
    return adata[:, positions_of_genes(adata, var_names)].copy()


def _check_same_genes(adata: AnnData, source_registry: dict) -> None:
    if not np.array_equal(adata.var_names, registered_genes(source_registry)):
        raise ValueError(
            "The genes of the AnnData are not those of the model, in its order. "
            "TRVAE.prepare_query_anndata(adata, model) makes them so."
        )


def _check_at_least_two_conditions(adata: AnnData, condition_key: str) -> None:
    conditions = adata.obs[condition_key].unique()
    if len(conditions) < 2:
        raise ValueError(
            f"condition_key {condition_key!r} has only one condition, {join_names(conditions)}; "
            "a transfer needs at least two."
        )
