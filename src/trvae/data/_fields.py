"""The fields that are registered of an AnnData, and the manager that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField

if TYPE_CHECKING:
    from collections.abc import Sequence
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField, NumericalJointObsField, NumericalObsField
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class UsedCategoricalObsField(CategoricalObsField):
    """A categorical column of ``obs`` of which only the categories that occur are registered.

    A declared category without a cell would otherwise become a condition whose weights are never
    trained, and into which cells could be transferred.
    """

    def register_field(self, adata: AnnData) -> dict:
        """Register the column as if its unused categories were not declared."""
        if self.is_default:
            return super().register_field(adata)
        self.validate_field(adata)
        column = self._get_original_column(adata)
        used = pd.Series(np.asarray(column).ravel()).unique()
        declared = getattr(adata.obs[self._original_attr_key].dtype, "categories", None)
        ordered = sorted(used) if declared is None else [c for c in declared if c in set(used)]
        return self.transfer_field(
            {self.CATEGORICAL_MAPPING_KEY: pd.Index(ordered).to_numpy()}, adata
        )


class UsedCategoricalJointObsField(CategoricalJointObsField):
    """Categorical covariates, as :class:`UsedCategoricalObsField`."""

    def _combine_fields(self, adata: AnnData) -> None:
        super()._combine_fields(adata)
        columns = adata.obsm[self.attr_key]
        for key in self.attr_keys:
            if isinstance(columns[key].dtype, pd.CategoricalDtype):
                columns[key] = columns[key].cat.remove_unused_categories()


class InOrderDataManager(AnnDataManager):
    """scvi-tools' manager, which gives rows of a file in the order in which they are asked for.

    Of files, scvi-tools gives them in ascending order, and h5py none that is asked for twice.
    """

    def create_torch_dataset(
        self, indices: Sequence[int] | None = None, *args, **kwargs
    ) -> Dataset:
        """As scvi-tools'."""
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
            UsedCategoricalJointObsField,
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
