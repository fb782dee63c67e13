"""Copies of users' cells with the genes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from trvae._scvi import is_registered
from trvae._utils._arguments import join_names
from trvae._utils._matrices import blocks_in_memory, computed, is_dask, stacked
from trvae.data._checks import (
    check_anndata,
    check_not_empty,
    check_not_lazy,
    check_unique_genes,
    get_matrix,
    is_on_disk,
)

if TYPE_CHECKING:
    import pandas as pd

Data = TypeVar("Data", AnnData, MuData)


def loaded(adata: AnnData) -> AnnData:
    """Read a file-backed or dask-backed AnnData into memory, and return any other as it is.

    For whatever needs all values at once. Unlike :meth:`anndata.AnnData.to_memory`, it leaves a file
    open, which the user may still read. Raises a ``ValueError`` for a lazy AnnData, and for what is
    none.
    """
    check_anndata(adata)
    check_not_lazy(adata)
    if not is_on_disk(adata):
        return adata.to_memory() if any(map(is_dask, (adata.X, *adata.layers.values()))) else adata
    parts = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp")
    # From anndata 0.13 on, X is a layer without a name.
    layers = {name: values for name, values in adata.layers.items() if name is not None}
    copy = AnnData(**{name: getattr(adata, name) for name in parts}, layers=layers).copy()
    copy.X = None if adata.X is None else adata.X[:]
    if (raw := adata.raw) is not None:
        copy.raw = AnnData(raw.X[:], var=raw.var, varm=dict(raw.varm), obs=adata.obs[[]])
    return copy


def unregistered(copy: Data) -> Data:
    """Remove from a copy what scvi-tools noted in the original, which stays registered.

    A copy that is registered under the same number would take the original's place.
    """
    for key in list(filter(is_registered, copy.uns)):
        del copy.uns[key]
    return copy


def check_not_backed(data: AnnData | MuData, purpose: str) -> None:
    """Raise a ``ValueError`` if data that are to be changed in place are in a file."""
    parts = data.mod.values() if isinstance(data, MuData) else [data]
    if any(part.isbacked for part in parts):
        raise ValueError(
            f"{purpose} needs data in memory, but they are file-backed. Read them into memory: "
            "adata.to_memory(), or mudata.read_h5mu(path)."
        )


def positions_of_genes(adata: AnnData, var_names: np.ndarray, genes: str = "genes") -> np.ndarray:
    """Find the model's genes in ``adata`` by name, as positions, ``n_genes``.

    Raises a ``ValueError`` if gene names are not unique or one of the model's genes is missing.
    """
    check_unique_genes(adata)
    positions = adata.var_names.get_indexer(var_names)
    if (positions < 0).any():
        missing = np.asarray(var_names)[positions < 0]
        raise ValueError(
            f"{len(missing)} of the model's {len(var_names)} {genes} are not in adata.var_names: "
            f"{join_names(missing)}. These are {join_names(adata.var_names)}."
        )
    return positions


def private_copy(
    adata: AnnData, var_names: np.ndarray, layer: str | None, genes: str = "genes"
) -> AnnData:
    """Copy cells with the model's genes only, to be registered in place of the user's.

    The matrix is shared where genes and format allow it; ``obs`` and ``var`` are copied. Dask
    arrays are computed.
    """
    check_not_empty(adata)
    check_not_lazy(adata)
    positions = positions_of_genes(adata, var_names, genes)
    matrix = computed(get_matrix(adata, layer))
    if not np.array_equal(positions, np.arange(adata.n_vars)):
        # h5py reads columns in ascending order only.
        matrix = stacked([block[:, positions] for block in blocks_in_memory(matrix)])
    if sparse.issparse(matrix):
        matrix = matrix.tocsr()
    elif isinstance(matrix, np.ndarray):
        # torch takes no tensor from the matrix of a view.
        matrix = np.asarray(matrix)
    return with_matrix(adata.obs.copy(), adata.var.iloc[positions].copy(), layer, matrix)


def with_matrix(obs: pd.DataFrame, var: pd.DataFrame, layer: str | None, matrix: Any) -> AnnData:
    """Make an AnnData with a matrix, which is not copied, in ``X`` or in a layer."""
    adata = AnnData(obs=obs, var=var)
    if layer is None:
        adata.X = matrix
    elif matrix is not None:
        adata.layers[layer] = matrix
    return adata
