"""Checks of users' data, which raise a ``ValueError`` that says what was given and what is allowed."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from mudata import MuData
from scipy import sparse
from scvi import settings

from trvae._utils._arguments import join_names
from trvae._utils._matrices import blocks_in_memory, row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

_ON_DISK = (h5py.Dataset, zarr.Array, CSRDataset, CSCDataset)

# Boolean, integer and floating-point numbers, by NumPy's letters.
_KINDS_OF_NUMBERS = "biuf"


def check_anndata(adata: Any) -> None:
    """Raise a ``ValueError`` unless it is an AnnData."""
    if not isinstance(adata, AnnData):
        raise ValueError(f"expected an AnnData, got a {type(adata).__name__}.")


def check_data(data: Any) -> None:
    """Raise a ``ValueError`` unless it is an AnnData, a MuData or ``None``."""
    if data is not None and not isinstance(data, MuData):
        check_anndata(data)


def check_not_empty(adata: AnnData) -> None:
    """Raise a ``ValueError`` if there are no cells or no genes."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata is empty: {adata.n_obs} x {adata.n_vars} (n_obs x n_vars).")


def check_not_lazy(adata: AnnData) -> None:
    """Raise a ``ValueError`` if not even its ``obs`` is in memory."""
    if _is_lazy(adata.obs):
        raise ValueError(
            "adata is lazy, which only transfer(..., out=...) takes. Call adata.to_memory(), or "
            "open the file with anndata.read_h5ad(path, backed='r')."
        )


def is_on_disk(data: AnnData | MuData) -> bool:
    """Whether values are read from a file when they are needed."""
    # A file-backed matrix may be in an AnnData that is not backed, such as that of a modality.
    return data.isbacked or isinstance(getattr(data, "X", None), _ON_DISK)


def check_workers(
    data: AnnData | MuData, num_workers: int | None = None, context: Any = None
) -> None:
    """Raise a ``ValueError`` if processes that read minibatches would be sent an open file.

    ``num_workers`` and ``context`` are those of PyTorch's ``DataLoader``; by default scvi-tools'
    setting and Python's.
    """
    if not is_on_disk(data) or not (
        settings.dl_num_workers if num_workers is None else num_workers
    ):
        return
    if context is None:
        # Asking for the default would fix it for the whole process.
        method = multiprocessing.get_start_method(allow_none=True)
        method = method or multiprocessing.get_all_start_methods()[0]
    else:
        method = context if isinstance(context, str) else context.get_start_method()
    if method != "fork":
        raise ValueError(
            f"file-backed cells can't be read by processes that are started by {method!r}. Use "
            "num_workers=0, or cells in memory: adata.to_memory()."
        )


def check_not_view(data: AnnData | MuData, name: str) -> None:
    """Raise a ``ValueError`` if it is a view, which can't be registered."""
    if data.is_view:
        raise ValueError(f"{name} is a view. Copy it first: {name} = {name}.copy().")


def in_memory(frame: Any) -> pd.DataFrame:
    """``obs`` or ``var`` in memory, whether the AnnData is lazy or not."""
    return frame.to_memory() if _is_lazy(frame) else frame


def _is_lazy(frame: Any) -> bool:
    return hasattr(frame, "to_memory")


def is_list_of_conditions(target_condition: Any) -> bool:
    """Whether it is a list of conditions rather than one condition."""
    return pd.api.types.is_list_like(target_condition)


# -------------------------------------------------------------------------------- matrices


def name_of_matrix(layer: str | None) -> str:
    """How users write the matrix that was set up."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def get_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or the layer; raise a ``ValueError`` unless it is a matrix of numbers."""
    if layer is None:
        try:
            matrix = adata.X
        except (AttributeError, KeyError):
            # An AnnCollection, or a file without X.
            matrix = None
        if matrix is None:
            raise ValueError("adata.X is None. Name the layer with the data: layer=...")
    else:
        layers = [name for name in adata.layers.keys() if name is not None]
        if layer not in layers:
            there = f": {join_names(layers)}" if layers else ", which is empty"
            raise ValueError(f"layer {layer!r} is not in adata.layers{there}.")
        matrix = adata.layers[layer]
    if matrix.dtype.kind not in _KINDS_OF_NUMBERS:
        where = name_of_matrix(layer)
        raise ValueError(
            f"{where} has values of type {matrix.dtype}, not real numbers. If they are numbers, "
            f"convert them: {where}.astype('float32')."
        )
    return matrix


def check_expression(matrix: Any, gene_likelihood: str, where: str) -> None:
    """Raise a ``ValueError`` if the values, all of which are checked, don't suit the likelihood.

    The matrix is dense, sparse or backed, ``n_cells x n_genes``; ``where`` names it in messages.
    """
    is_normal, only_integers, largest = gene_likelihood == "normal", True, 0.0
    for values in _blocks_of_values(matrix):
        low, high = _finite_range(values, where)
        is_integer = values.dtype.kind in "biu" or bool((values == np.rint(values)).all())
        only_integers = only_integers and is_integer
        largest = max(largest, high)
        if not is_normal and low < 0:
            raise ValueError(
                f"{where} has negative values (down to {low:g}), but "
                f"gene_likelihood={gene_likelihood!r} is for raw counts."
            )
        if not is_normal and not is_integer:
            fraction = values[values != np.rint(values)].flat[0]
            raise ValueError(
                f"{where} has values that are not integers (such as {fraction:g}), but "
                f"gene_likelihood={gene_likelihood!r} is for raw counts. Register the layer with "
                "the counts, or use gene_likelihood='normal' for log-normalised values."
            )
    if is_normal and only_integers and largest > 1:
        raise ValueError(
            f"{where} has only integers (up to {largest:g}), which look like raw counts, but "
            "gene_likelihood='normal' is for log-normalised values. Use gene_likelihood='nb', or "
            "register log-normalised values."
        )


def check_library(
    matrix: Any, library: pd.Series, where: str, positions: Any = slice(None)
) -> None:
    """Raise a ``ValueError`` if library sizes are smaller than what the matrix has of the library."""
    blocks = blocks_in_memory(matrix)
    sums = np.concatenate([np.ravel(block.sum(1, dtype=float)) for block in blocks])
    # Counts that were estimated may be rounded.
    is_smaller = (library.to_numpy(dtype=float) < 0.99 * sums)[positions]
    if n_smaller := int(is_smaller.sum()):
        raise ValueError(
            f"library_key {library.name!r} is smaller than the sum of {where} in {n_smaller} of "
            f"{len(is_smaller)} cells. It must be each cell's counts over all genes, not their logarithm or a "
            "size factor."
        )


def is_nonnegative(matrix: Any) -> bool:
    """Whether no value is negative."""
    return all((values >= 0).all() for values in _blocks_of_values(matrix))


def value_range(matrix: Any, where: str) -> tuple[float, float]:
    """Smallest and largest value, 0 included; a ``ValueError`` if any is not finite."""
    low = high = 0.0
    for values in _blocks_of_values(matrix):
        low_of_block, high_of_block = _finite_range(values, where)
        low, high = min(low, low_of_block), max(high, high_of_block)
    return low, high


def _finite_range(values: np.ndarray, where: str) -> tuple[float, float]:
    """Smallest and largest value, 0 included, which tell whether all are finite in float32."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    # Networks compute in float32.
    with np.errstate(over="ignore"):
        if np.isfinite(np.array([low, high], np.float32)).all():
            return low, high
        n_bad = int((~np.isfinite(values.astype(np.float32))).sum())
    raise ValueError(
        f"{where} has {n_bad} values that are NaN, infinite or too large for float32."
    )


def _blocks_of_values(matrix: Any) -> Iterator[np.ndarray]:
    """Yield the values (of a sparse matrix the stored ones), some rows at a time."""
    if isinstance(matrix, np.ndarray):
        yield matrix
    elif sparse.issparse(matrix):
        yield matrix.data
    elif isinstance(matrix, pd.DataFrame):
        yield matrix.to_numpy()
    else:
        for block in row_blocks(matrix):
            yield from _blocks_of_values(block)


# ----------------------------------------------------------------------- columns of ``obs``


def check_obs_column(
    adata: AnnData, argument: str, key: str, *, complete: bool = True
) -> pd.Series:
    """Return a column of ``obs``; raise a ``ValueError`` if it is absent or has missing values."""
    if not pd.api.types.is_hashable(key) or key not in adata.obs:
        raise ValueError(f"{argument} {key!r} is not in adata.obs: {join_names(adata.obs)}.")
    column = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"{argument} {key!r} names several columns of adata.obs.")
    if complete and column.isna().any():
        raise ValueError(
            f"{argument} {key!r} has {int(column.isna().sum())} missing values in {len(column)} "
            "rows of adata.obs. Remove these rows or fill them in."
        )
    return column


def check_categories(adata: AnnData, argument: str, key: str) -> None:
    """Raise a ``ValueError`` unless the column of ``obs`` is complete and of one type."""
    column = _column_to_register(adata, argument, key)
    try:
        values = column.unique()
    except TypeError as error:
        raise ValueError(
            f"{argument} {key!r} has values that can't be categories: {error}."
        ) from error
    kinds = sorted({type(value).__name__ for value in values})
    if len(kinds) > 1:
        raise ValueError(
            f"{argument} {key!r} mixes values of types {join_names(kinds)}. Convert them, such as "
            f"by adata.obs[{key!r}].astype(str)."
        )


def check_numbers(adata: AnnData, argument: str, key: str, *, positive: bool = False) -> None:
    """Raise a ``ValueError`` unless the column of ``obs`` holds finite (positive) numbers."""
    column = _column_to_register(adata, argument, key)
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise ValueError(f"{argument} {key!r} must be of real numbers, got {column.dtype}.")
    _finite_range(column.to_numpy(dtype=float), f"{argument} {key!r}")
    if positive and not (column > 0).all():
        raise ValueError(
            f"{argument} {key!r} must be positive, but has values down to {column.min()}."
        )


def _column_to_register(adata: AnnData, argument: str, key: str) -> pd.Series:
    column = check_obs_column(adata, argument, key)
    # scvi-tools takes an empty key for no key.
    if not isinstance(key, str) or not key:
        raise ValueError(f"{argument} must be a non-empty string, got {key!r}.")
    return column


# ------------------------------------------------------------------------- cells and genes


def cell_positions(
    indices: Any, n_cells: int, argument: str = "indices", cells: str = "cells"
) -> np.ndarray:
    """Return positions of the chosen cells; ``indices`` are positions, a mask, or ``None`` for all.

    ``argument`` and ``cells`` are their names in messages.
    """
    positions = np.arange(n_cells)
    if indices is None:
        return positions
    chosen = np.asarray(indices)
    if chosen.ndim != 1:
        raise ValueError(f"{argument} must be a list of positions or a mask, got {indices!r}.")
    try:
        positions = positions[chosen if len(chosen) else chosen.astype(int)]
    except IndexError as error:
        raise ValueError(f"{argument} don't fit {n_cells} {cells}: {error}") from error
    if len(positions) == 0:
        raise ValueError(f"{argument} select none of the {n_cells} {cells}.")
    return positions


def check_unique_genes(adata: AnnData, name: str = "adata") -> None:
    """Raise a ``ValueError`` if two genes share a name; ``name`` is that of the AnnData."""
    if not adata.var_names.is_unique:
        duplicates = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            f"{name}.var_names are not unique: {join_names(duplicates)}. "
            f"Call {name}.var_names_make_unique() first."
        )
