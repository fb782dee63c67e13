"""A common scale for predicted and observed cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from trvae._utils._matrices import dense
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
        ``adata.uns["log1p"]["target_sum"]`` tells which library size they are scaled to.
    target_sum
        Library size to scale to, as :func:`median_library_size` returns it.
    layer
        Layer to use, by default ``X``.
    library_key
        Column of ``obs`` with each cell's library size over all genes that were measured. By
        default the sum over the genes at hand.

    Returns
    -------
    Dense ``float64``, ``n_cells x n_genes``.

    Raises
    ------
    ValueError
        If there is no such layer or column.
    """
    matrix = get_matrix(adata, layer)
    values = dense(matrix).astype(float)
    if not is_counts(values):
        scaled_to = _stated_target_sum(adata)
        if scaled_to is None or target_sum is None:
            return values
        return np.log1p(np.expm1(values) * (target_sum / scaled_to))
    library = _library_sizes(adata, matrix, library_key)
    return np.log1p(values / np.maximum(library, 1)[:, None] * target_sum)


def median_library_size(
    adata: AnnData, layer: str | None = None, library_key: str | None = None
) -> float | None:
    """Median library size of the cells, to scale all groups of a comparison to.

    Parameters
    ----------
    adata, layer, library_key
        As in :func:`log_normalized`.

    Returns
    -------
    Counts a cell, at least 1. Of log-normalised values, the library size that
    ``adata.uns["log1p"]["target_sum"]`` tells; ``None`` if it doesn't.

    Raises
    ------
    ValueError
        If there is no such layer or column.
    """
    matrix = get_matrix(adata, layer)
    if not is_counts(matrix):
        return _stated_target_sum(adata)
    sizes = _library_sizes(adata, matrix, library_key)
    return max(float(np.median(sizes)), 1.0)


def check_same_scale(groups: dict[str, AnnData], layer: str | None = None) -> None:
    """Raise a ``ValueError`` if some groups hold counts and others values of unknown scale.

    Parameters
    ----------
    groups
        The groups to compare, by name.
    layer
        Layer to compare, by default ``X``.
    """
    counts = {name: is_counts(get_matrix(adata, layer)) for name, adata in groups.items()}
    with_counts = [name for name, found in counts.items() if found]
    without = [
        name
        for name, found in counts.items()
        if not found and _stated_target_sum(groups[name]) is None
    ]
    if with_counts and without:
        raise ValueError(
            f"{', '.join(with_counts)} hold counts, but {', '.join(without)} values that are not "
            "integers. Compare counts with counts, as transfer() draws them, log-normalised "
            "values with log-normalised values, or say in uns['log1p']['target_sum'] which "
            "library size log-normalised values are scaled to."
        )


def _stated_target_sum(adata: AnnData) -> float | None:
    return adata.uns.get("log1p", {}).get("target_sum")


def _library_sizes(adata: AnnData, matrix, library_key: str | None) -> np.ndarray:
    if library_key is None:
        return np.asarray(matrix.sum(1)).ravel()
    return check_obs_column(adata, "library_key", library_key).to_numpy(dtype=float)


def is_counts(matrix: Any) -> bool:
    """Whether all values are integers, as counts are and log-normalised values are not.

    Parameters
    ----------
    matrix
        Dense or sparse.
    """
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    return bool(np.all(values % 1 == 0))
