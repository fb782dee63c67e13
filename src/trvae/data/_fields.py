"""The fields that are registered of an AnnData, and the manager that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from torch.utils.data import Dataset

from trvae._utils._matrices import is_in_memory
from trvae.data._codes import codes_of, extended, used_categories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class NamedCategoricalObsField(CategoricalObsField):
    """A categorical column of ``obs``, of which only the categories that occur are registered.

    A declared category without cells would otherwise become a condition with untrained weights,
    into which cells could be transferred. Codes are found by name.
    """

    def __init__(self, registry_key: str, obs_key: str | None):
        super().__init__(registry_key, obs_key)
        self._obs_key = obs_key

    def register_field(self, adata: AnnData) -> dict:
        """Register the column as if its unused categories were not declared."""
        if self._obs_key is None:
            return super().register_field(adata)
        return self._register(adata, used_categories(adata.obs[self._obs_key]))

    def transfer_field(
        self,
        state_registry: dict,
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict:
        """Register the column with the codes of a registry, to which categories may be added."""
        if self._obs_key is None:
            return super().transfer_field(state_registry, adata_target, extend_categories)
        known, column = (
            state_registry[self.CATEGORICAL_MAPPING_KEY],
            adata_target.obs[self._obs_key],
        )
        return self._register(
            adata_target, extended(known, column) if extend_categories else known
        )

    def _register(self, adata: AnnData, categories: np.ndarray) -> dict:
        adata.obs[self.attr_key] = codes_of(adata.obs[self._obs_key], categories)
        return {
            self.CATEGORICAL_MAPPING_KEY: categories,
            self.ORIGINAL_ATTR_KEY: self._obs_key,
        }


class NamedCategoricalJointObsField(CategoricalJointObsField):
    """Categorical covariates, see :class:`NamedCategoricalObsField`.

    scvi-tools takes the categories of a column that declares them in another order for one another.
    """

    def register_field(self, adata: AnnData) -> dict:
        """Register the columns as if their unused categories were not declared."""
        if self.is_empty:
            return super().register_field(adata)
        return self._register(
            adata, {key: used_categories(adata.obs[key]) for key in self.attr_keys}
        )

    def transfer_field(
        self,
        state_registry: dict,
        adata_target: AnnData,
        extend_categories: bool = False,
        **kwargs: Any,
    ) -> dict:
        """Register the columns with the codes of a registry, to which categories may be added."""
        if self.is_empty:
            return super().transfer_field(state_registry, adata_target, extend_categories)
        known, obs = state_registry[self.MAPPINGS_KEY], adata_target.obs
        return self._register(
            adata_target,
            {
                key: extended(known[key], obs[key]) if extend_categories else known[key]
                for key in self.attr_keys
            },
        )

    def _register(self, adata: AnnData, categories: dict[str, np.ndarray]) -> dict:
        codes = {key: codes_of(adata.obs[key], names) for key, names in categories.items()}
        adata.obsm[self.attr_key] = pd.DataFrame(codes, adata.obs_names)
        return {
            self.MAPPINGS_KEY: categories,
            self.FIELD_KEYS_KEY: self.attr_keys,
            self.N_CATS_PER_KEY: list(map(len, categories.values())),
        }


class InOrderDataManager(AnnDataManager):
    """scvi-tools' manager, which reads rows of a file in any order.

    scvi-tools would return them in ascending order, and h5py refuses repeated ones.
    """

    def create_torch_dataset(
        self, indices: Sequence[int] | None = None, *args, **kwargs
    ) -> Dataset:
        """See :meth:`scvi.data.AnnDataManager.create_torch_dataset`."""
        matrix = self.get_from_registry(REGISTRY_KEYS.X_KEY)
        if (is_in_memory(matrix) and not self.adata.isbacked) or kwargs.get("load_sparse_tensor"):
            return super().create_torch_dataset(indices, *args, **kwargs)
        rows = np.arange(self.adata.n_obs) if indices is None else np.asarray(indices)
        return _InOrder(super().create_torch_dataset(None, *args, **kwargs), rows)


class _InOrder(Dataset):
    def __init__(self, dataset: Dataset, rows: np.ndarray):
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Any) -> dict[str, Any]:
        rows, order = np.unique(self.rows[np.atleast_1d(positions)], return_inverse=True)
        minibatch = self.dataset[rows.tolist()]
        return {name: np.asarray(values)[order] for name, values in minibatch.items()}


class FieldSpec(NamedTuple):
    """A field to register."""

    argument: str
    """Argument of ``setup_mudata`` that names the modality it is taken from."""
    field: type
    registry_key: str
    key: Any
    """Layer, column or columns."""
    options: dict = {}


def fields_of(setup_args: dict) -> list[FieldSpec]:
    """The fields to register for the arguments of ``setup_anndata``."""
    key = REGISTRY_KEYS
    fields = {
        "condition_key": (NamedCategoricalObsField, key.BATCH_KEY),
        "labels_key": (NamedCategoricalObsField, key.LABELS_KEY),
        "size_factor_key": (NumericalObsField, key.SIZE_FACTOR_KEY),
        "categorical_covariate_keys": (NamedCategoricalJointObsField, key.CAT_COVS_KEY),
        "continuous_covariate_keys": (NumericalJointObsField, key.CONT_COVS_KEY),
    }
    # Whether the values suit the likelihood is checked once that is known.
    matrix = FieldSpec(
        "rna_layer", LayerField, key.X_KEY, setup_args["layer"], {"is_count_data": False}
    )
    return [
        matrix,
        *(
            FieldSpec(
                argument,
                field,
                registry_key,
                setup_args.get(argument),
                {"required": False} if field is NumericalObsField else {},
            )
            for argument, (field, registry_key) in fields.items()
        ),
    ]
