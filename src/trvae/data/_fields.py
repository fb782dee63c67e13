"""The fields that are registered of an AnnData, and the manager that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class UsedCategoricalObsField(CategoricalObsField):
    """A categorical column of ``obs``, of which only the categories that occur are registered.

    A declared category without cells would otherwise become a condition with untrained weights,
    into which cells could be transferred.
    """

    def __init__(self, registry_key: str, obs_key: str | None):
        super().__init__(registry_key, obs_key)
        self._obs_key = obs_key

    def register_field(self, adata: AnnData) -> dict:
        """Register the column as if its unused categories were not declared."""
        if self._obs_key is None:
            return super().register_field(adata)
        categories = _used_categories(adata.obs[self._obs_key])
        return self.transfer_field({self.CATEGORICAL_MAPPING_KEY: categories}, adata)


class UsedCategoricalJointObsField(CategoricalJointObsField):
    """Categorical covariates, see :class:`UsedCategoricalObsField`: only categories that occur."""

    def register_field(self, adata: AnnData) -> dict:
        """Register the columns as if their unused categories were not declared."""
        if self.is_empty:
            return super().register_field(adata)
        used = {key: _used_categories(adata.obs[key]) for key in self.attr_keys}
        return self.transfer_field({self.MAPPINGS_KEY: used}, adata)


def _used_categories(column: pd.Series) -> np.ndarray:
    """Categories in their declared order, other values sorted."""
    return np.asarray(column.astype("category").cat.remove_unused_categories().cat.categories)


class InOrderDataManager(AnnDataManager):
    """scvi-tools' manager, which reads rows of a file in any order.

    scvi-tools would return them in ascending order, and h5py refuses repeated ones.
    """

    def create_torch_dataset(
        self, indices: Sequence[int] | None = None, *args, **kwargs
    ) -> Dataset:
        """See :meth:`scvi.data.AnnDataManager.create_torch_dataset`."""
        matrix = self.get_from_registry(REGISTRY_KEYS.X_KEY)
        is_in_memory = isinstance(matrix, np.ndarray) or sparse.issparse(matrix)
        if (is_in_memory and not self.adata.isbacked) or kwargs.get("load_sparse_tensor"):
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
        "condition_key": (UsedCategoricalObsField, key.BATCH_KEY),
        "labels_key": (UsedCategoricalObsField, key.LABELS_KEY),
        "size_factor_key": (NumericalObsField, key.SIZE_FACTOR_KEY),
        "categorical_covariate_keys": (UsedCategoricalJointObsField, key.CAT_COVS_KEY),
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
