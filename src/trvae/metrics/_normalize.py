"""Log-normalisation to a library size that all groups of a comparison share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from trvae._utils._matrices import dense
from trvae.data._cells import loaded
from trvae.data._checks import check_obs_column, get_matrix

if TYPE_CHECKING:
    from anndata import AnnData


def log_normalized(
    adata: AnnData,
    *,
    target_sum: float | None,
    layer: str | None = None,
    library_key: str | None = None,
) -> np.ndarray:
    """Counts as ``log(1 + count / library size * target_sum)``; other values as they are.

    Parameters
    ----------
    adata
        Cells with counts, or with log-normalised values, which are returned unchanged unless
        ``adata.uns["log1p"]["target_sum"]`` states the library size that they are scaled to. They
        keep the base that ``adata.uns["log1p"]["base"]`` states, by default ``e``. If the cells are
        file-backed, they are read into memory.
    target_sum
        Library size to scale to, from :func:`median_library_size`.
    layer
        Layer to use, by default ``X``.
    library_key
        Column of ``obs`` with each cell's library size over all measured genes. By default the sum
        over the genes in ``adata``.

    Returns
    -------
    Dense ``float64``, ``n_cells x n_genes``.

    Raises
    ------
    ValueError
        If ``adata`` is not an AnnData, or has no such layer or column.
    """
    adata = loaded(adata)
    matrix = get_matrix(adata, layer)
    values = dense(matrix).astype(float)
    if not has_values(values):
        return values
    if is_counts(values):
        return log_of_counts(values, library_sizes(adata, layer, library_key), target_sum)
    scaled_to = stated_target_sum(adata)
    if scaled_to is None or target_sum is None:
        return values
    unit = np.log(stated_base(adata) or math.e)
    return np.log1p(np.expm1(values * unit) * (target_sum / scaled_to)) / unit


def log_of_counts(counts: np.ndarray, library: np.ndarray, target_sum: Any) -> np.ndarray:
    """``log(1 + count / library size * target_sum)``, ``n_cells x n_genes``."""
    return np.log1p(counts / np.maximum(library, 1)[:, None] * target_sum)


def median_library_size(
    adata: AnnData, layer: str | None = None, library_key: str | None = None
) -> float | None:
    """Median library size of the cells, to scale all groups of a comparison to.

    Parameters
    ----------
    adata, layer, library_key
        See :func:`log_normalized`: the cells, and where their counts and library sizes are.

    Returns
    -------
    Counts per cell, at least 1. For log-normalised values, the library size that
    ``adata.uns["log1p"]["target_sum"]`` states, or ``None`` without it.

    Raises
    ------
    ValueError
        If ``adata`` is not an AnnData, or has no such layer or column.
    """
    adata = loaded(adata)
    matrix = get_matrix(adata, layer)
    stated = stated_target_sum(adata)
    # Cells without any counts have the same logarithms.
    if not is_counts(matrix) or (stated is not None and not has_values(matrix)):
        return stated
    return max(float(np.median(library_sizes(adata, layer, library_key))), 1.0)


def is_counts(matrix: Any) -> bool:
    """Whether all values of a dense or sparse matrix are integers, unlike log-normalised values."""
    return bool(np.all(_stored(matrix) % 1 == 0))


def has_values(matrix: Any) -> bool:
    """Whether a value of a dense or sparse matrix is not 0."""
    return bool(_stored(matrix).any())


def _stored(matrix: Any) -> np.ndarray:
    return matrix.data if sparse.issparse(matrix) else np.asarray(matrix)


def stated_target_sum(adata: AnnData) -> float | None:
    """Library size that log-normalised values are scaled to, if ``uns`` states it."""
    return adata.uns.get("log1p", {}).get("target_sum")


def stated_base(adata: AnnData) -> float | None:
    """Base of the logarithms, ``e`` if ``uns`` says that they are natural, ``None`` if nothing."""
    if "log1p" not in adata.uns:
        return None
    return adata.uns["log1p"].get("base") or math.e


def library_sizes(adata: AnnData, layer: str | None, library_key: str | None) -> np.ndarray:
    """Counts of each cell, in the layer or as the column states, ``n_cells``."""
    if library_key is None:
        return np.ravel(get_matrix(adata, layer).sum(1, dtype=float))
    return check_obs_column(adata, "library_key", library_key).to_numpy(dtype=float)
