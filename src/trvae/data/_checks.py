"""Checks of users' data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from trvae._utils._arguments import (
    join_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object

from typing import TYPE_CHECKING

from trvae._utils._matrices import row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator


# Booleans, integers and floats, by NumPy's letters, and the type among them that PyTorch lacks.
_KINDS_OF_NUMBERS, _LONGDOUBLE = "biuf", "g"


# Networks compute in float32. SciPy's quantiles of Poisson are NaN from means of about 2**35 on,
# those of the binomial from 2**51; far above, they are searched for without end.
_LARGEST_VALUE, _LARGEST_COUNT = float(np.finfo(np.float32).max), 2**32


def check_anndata(adata: Any) -> None:
    """Raise a ``ValueError`` unless it is an AnnData."""
    if not isinstance(adata, AnnData):
        raise ValueError(f"adata is a {type(adata).__name__}, but no AnnData.")


def check_data(data: Any) -> None:
    """Raise a ``ValueError`` unless it is an AnnData, a MuData or ``None``."""
    if data is not None and not isinstance(data, MuData):
        check_anndata(data)


def check_not_empty(adata: AnnData) -> None:
    """Raise a ``ValueError`` if there is not a single value."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(
            f"The AnnData is empty: n_obs x n_vars is {adata.n_obs} x {adata.n_vars}."
        )


def check_not_lazy(adata: AnnData) -> None:
    """Raise a ``ValueError`` if not even its ``obs`` is in memory."""
    if _is_lazy(adata.obs):
        raise ValueError(
            "adata is read lazily, which is for transfer(..., out=...) only. Call "
            "adata.to_memory(), or open the file with anndata.read_h5ad(path, backed='r')."
        )


def check_not_view(data: AnnData | MuData, name: str) -> None:
    """Raise a ``ValueError`` if it is a view, which can't be registered."""
    if data.is_view:
        raise ValueError(
            f"{name} is a view, whose cells are another's. Copy it: {name} = {name}.copy()."
        )


def in_memory(frame: Any) -> pd.DataFrame:
    """``obs`` or ``var`` in memory, also of an AnnData that is read lazily."""
    return frame.to_memory() if _is_lazy(frame) else frame


def _is_lazy(frame: Any) -> bool:
    return hasattr(frame, "to_memory")


def name_of_matrix(layer: str | None) -> str:
    """The matrix that was set up, as users know it."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def get_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``adata.X`` or the layer, or raise a ``ValueError`` if it isn't a matrix of numbers."""
    if layer is None:
        # A collection of files has layers only.
        if getattr(adata, "X", None) is None:
            raise ValueError("adata.X is empty. Name the layer that holds the data: layer=...")
        matrix = adata.X
    else:
        layers = [name for name in adata.layers.keys() if name is not None]
        if layer not in layers:
            there_are = join_names(layers) if layers else "there are none"
            raise ValueError(f"layer {layer!r} is not in adata.layers: {there_are}.")
        matrix = adata.layers[layer]
    where = name_of_matrix(layer)
    if matrix.dtype.kind not in _KINDS_OF_NUMBERS:
        raise ValueError(
            f"{where} is not of numbers, but of type {matrix.dtype}. If it holds numbers, convert "
            f"it: {where}.astype('float32')."
        )
    if matrix.dtype.char == _LONGDOUBLE or not matrix.dtype.isnative:
        raise ValueError(
            f"{where} is of type {matrix.dtype.str!r}, which PyTorch does not have. Convert it: "
            f"{where}.astype('float32')."
        )
    if isinstance(matrix, np.ma.MaskedArray):
        raise ValueError(
            f"{where} is a masked array, of which the masked values are not known. Give them one, "
            f"such as by {where}.filled(0)."
        )
    return matrix


def check_obs_column(
    adata: AnnData, argument: str, key: str, *, complete: bool = True
) -> pd.Series:
    """Return the column of ``obs``, or raise a ``ValueError`` if it is missing or has gaps."""
    if not pd.api.types.is_hashable(key) or key not in adata.obs:
        raise ValueError(f"{argument} {key!r} is not in adata.obs: {join_names(adata.obs)}.")
    column = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"{argument} {key!r} is the name of several columns of adata.obs.")
    if complete and column.isna().any():
        raise ValueError(
            f"{argument} {key!r}: {int(column.isna().sum())} of {len(column)} rows of adata.obs "
            "have no value. Remove them or give them one."
        )
    return column


def _column_to_register(adata: AnnData, argument: str, key: str) -> pd.Series:
    column = check_obs_column(adata, argument, key)
    # Whatever counts as false is no key to scvi-tools.
    if not isinstance(key, str) or not key:
        raise ValueError(
            f"{argument} {key!r} is not a string that isn't empty. Rename the column of adata.obs."
        )
    return column


def check_categories(adata: AnnData, argument: str, key: str) -> None:
    """Raise a ``ValueError`` unless the column of ``obs`` is complete and of one type."""
    column = _column_to_register(adata, argument, key)
    as_text = f"such as by adata.obs[{key!r}].astype(str)."
    try:
        values = column.unique()
        kinds = {type(value).__name__ for value in values}
        if len(kinds) == 1:
            sorted(values)
    except TypeError as error:
        raise ValueError(
            f"{argument} {key!r} has values that can't be categories ({error}). Make them text, "
            f"{as_text}"
        ) from error
    if len(kinds) > 1:
        raise ValueError(
            f"{argument} {key!r} mixes values of types {join_names(sorted(kinds))}. "
            f"Make them one, {as_text}"
        )


def check_numbers(adata: AnnData, argument: str, key: str, *, positive: bool = False) -> None:
    """Raise a ``ValueError`` unless the column of ``obs`` holds finite (positive) numbers."""
    column = _column_to_register(adata, argument, key)
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise ValueError(f"{argument} {key!r} is not of real numbers, but of type {column.dtype}.")
    if not np.isfinite(column).all():
        raise ValueError(f"{argument} {key!r} has infinite values.")
    _check_size(column.to_numpy(dtype=float), f"{argument} {key!r}")
    if positive and not (column > 0).all():
        raise ValueError(
            f"{argument} {key!r} has values that are not positive (as low as {column.min()})."
        )


def cell_positions(
    indices: Any, n_cells: int, argument: str = "indices", cells: str = "cells"
) -> np.ndarray:
    """Return which cells are chosen, or raise a ``ValueError`` if there are none or not so many.

    Parameters
    ----------
    indices
        Positions of cells, a mask of them, or ``None`` for all.
    n_cells
        Number of cells to choose among.
    argument, cells
        What the message calls ``indices``, and what they choose.
    """
    positions = np.arange(n_cells)
    if indices is None:
        return positions
    chosen = np.asarray(indices)
    if chosen.ndim != 1:
        raise ValueError(f"{argument}={indices!r} is neither a list of positions nor a mask.")
    try:
        positions = positions[chosen if len(chosen) else chosen.astype(int)]
    except IndexError as error:
        raise ValueError(f"{argument} don't fit {n_cells} {cells}: {error}") from error
    if len(positions) == 0:
        raise ValueError(
            f"No {cells} are selected: {argument} choose none of the {n_cells} {cells}."
        )
    return positions


def check_unique_genes(adata: AnnData) -> None:
    """Raise a ``ValueError`` if two genes share a name."""
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            f"adata.var_names are not unique: {join_names(twice)}. "
            "Call adata.var_names_make_unique() first."
        )


def check_expression(matrix: Any, gene_likelihood: str, where: str) -> None:
    """Raise a ``ValueError`` if the values don't suit the likelihood.

    Parameters
    ----------
    matrix
        Dense, sparse or backed, ``n_cells x n_genes``. All values are looked at.
    gene_likelihood
        ``"normal"`` for log-normalised values, otherwise one of counts.
    where
        Where the values are, for the message.
    """
    only_integers, largest = True, 0.0
    for values in _blocks_of_values(matrix):
        if values.size == 0:
            continue
        _check_size(values, where)
        fractional = values[values % 1 != 0]
        only_integers = only_integers and fractional.size == 0
        largest = max(largest, float(values.max()))
        if gene_likelihood == "normal":
            continue
        if values.min() < 0:
            raise ValueError(
                f"{where} has negative values (as low as {values.min():g}), but "
                f"gene_likelihood={gene_likelihood!r} is for raw counts."
            )
        if fractional.size:
            raise ValueError(
                f"{where} has values that are not integers (such as {fractional.flat[0]:g}), but "
                f"gene_likelihood={gene_likelihood!r} is for raw counts. Register the layer that "
                "holds the counts, or use gene_likelihood='normal' for log-normalised values."
            )
    if gene_likelihood != "normal" and largest > _LARGEST_COUNT:
        raise ValueError(
            f"{where} has counts up to {largest:g}, more than 2**32, up to which counts can be "
            "drawn. Remove or replace them."
        )
    if gene_likelihood == "normal" and only_integers and largest > 1:
        raise ValueError(
            f"{where} holds only integers (up to {largest:g}), which look like raw counts, but "
            "gene_likelihood='normal' is for log-normalised values. Use gene_likelihood='nb', or "
            "register log-normalised values."
        )


def is_nonnegative(matrix: Any) -> bool:
    """Whether no value is below 0."""
    return all((values >= 0).all() for values in _blocks_of_values(matrix))


def value_range(matrix: Any, where: str) -> tuple[float, float]:
    """The smallest and the largest of 0 and all values, or a ``ValueError`` if any is no float32.

    Parameters
    ----------
    matrix, where
        As in :func:`check_expression`.
    """
    low = high = 0.0
    for values in _blocks_of_values(matrix):
        _check_size(values, where)
        low = min(low, float(values.min(initial=0)))
        high = max(high, float(values.max(initial=0)))
    return low, high


def _check_size(values: np.ndarray, where: str) -> None:
    """Raise a ``ValueError`` if any isn't finite, or wouldn't be as a float32."""
    n_bad = int(values.size - np.isfinite(values).sum())
    if n_bad:
        raise ValueError(
            f"{where} has {n_bad} values that are NaN or infinite. Remove or replace them."
        )
    largest = max(float(values.max(initial=0)), float(values.min(initial=0)), key=abs)
    if abs(largest) > _LARGEST_VALUE:
        raise ValueError(
            f"{where} has values as large as {largest:g}, beyond the range of float32 (up to "
            f"{_LARGEST_VALUE:g}), in which networks compute. Remove or rescale them."
        )


def _blocks_of_values(matrix: Any) -> Iterator[np.ndarray]:
    """Yield the values (of a sparse matrix the stored ones), a limited number of rows at once."""
    if isinstance(matrix, np.ndarray):
        yield matrix
    elif sparse.issparse(matrix):
        yield matrix.data
    elif isinstance(matrix, pd.DataFrame):
        yield matrix.to_numpy()
    else:
        for block in row_blocks(matrix):
            yield from _blocks_of_values(block)


def is_list_of_conditions(target_condition: Any) -> bool:
    """Whether it is a list of conditions, not one of them."""
    return pd.api.types.is_list_like(target_condition)
