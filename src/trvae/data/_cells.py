"""Private copies of users' cells with the model's genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae._utils._matrices import computed

if TYPE_CHECKING:
    pass

from trvae._utils._arguments import join_names
from trvae.data._checks import check_not_empty, check_not_lazy, check_unique_genes, get_matrix

if TYPE_CHECKING:
    from anndata import AnnData


def positions_of_genes(adata: AnnData, var_names: np.ndarray, genes: str = "genes") -> np.ndarray:
    """Return where in ``adata`` the model's genes are, matched by name.

    Parameters
    ----------
    adata
        The user's cells, which may have more genes.
    var_names
        The model's genes.
    genes
        What the message calls them.

    Raises
    ------
    ValueError
        If a gene name occurs twice or one of the model's genes is missing.
    """
    check_unique_genes(adata)
    position = adata.var_names.get_indexer(pd.Index(var_names))
    if (position < 0).any():
        missing = np.asarray(var_names)[position < 0]
        raise ValueError(
            f"{len(missing)} of the model's {len(var_names)} {genes} are not in adata.var_names: "
            f"{join_names(missing)}."
        )
    return position


def private_copy(
    adata: AnnData, var_names: np.ndarray, layer: str | None, genes: str = "genes"
) -> AnnData:
    """Return an AnnData of the model's genes that can be registered in place of the user's.

    It shares the matrix where genes and format allow it, and has its own ``obs``. What is of dask
    is computed.

    Parameters
    ----------
    adata
        The user's cells. Genes are matched by name, others are left out.
    var_names
        The model's genes.
    layer
        The layer to take, or ``None`` for ``X``.
    genes
        What messages call them.

    Raises
    ------
    ValueError
        If there is no cell, a gene name occurs twice or one of the model's genes is missing, or
        the AnnData is read lazily.
    """
    check_not_empty(adata)
    check_not_lazy(adata)
    position = positions_of_genes(adata, var_names, genes)
    matrix = computed(get_matrix(adata, layer))
    if not np.array_equal(position, np.arange(adata.n_vars)):
        matrix = matrix[:, position]
    if sparse.issparse(matrix):
        matrix = matrix.tocsr()
    elif isinstance(matrix, np.ndarray):
        # The matrix of a view is of a class that torch takes no tensor from.
        matrix = np.asarray(matrix)
    return with_matrix(adata.obs.copy(), adata.var.iloc[position].copy(), layer, matrix)


def with_matrix(obs: pd.DataFrame, var: pd.DataFrame, layer: str | None, matrix: Any) -> AnnData:
    """Return an AnnData that has a matrix, which is not copied, in ``X`` or in a layer."""
    adata = AnnData(obs=obs, var=var)
    if layer is None:
        adata.X = matrix
    elif matrix is not None:
        adata.layers[layer] = matrix
    return adata
