"""Checks of users' data, and private copies so that it is never written to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_ROWS_AT_ONCE = 10_000
_NAMES_SHOWN = 10
# Booleans, integers and floats, by NumPy's letters, and the type among them that PyTorch lacks.
_KINDS_OF_NUMBERS, _LONGDOUBLE = "biuf", "g"
# Networks compute in float32. SciPy's quantiles of Poisson are NaN from means of about 2**35 on,
# those of the binomial from 2**51; far above, they are searched for without end.
_LARGEST_VALUE, _LARGEST_COUNT = float(np.finfo(np.float32).max), 2**32


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


def join_names(names: Iterable[Any]) -> str:
    """Quote and join names for a message, the first few of many."""
    names = list(names)
    # Numpy's scalars would be shown with their type.
    plain = (n.item() if isinstance(n, np.generic) else n for n in names[:_NAMES_SHOWN])
    shown = ", ".join(map(repr, plain))
    return shown + (f", … ({len(names)} in all)" if len(names) > _NAMES_SHOWN else "")


def check_choice(argument: str, given: Any, allowed: Sequence[Any]) -> None:
    """Raise a ``ValueError`` that names what is allowed unless ``given`` is."""
    if given not in allowed:
        raise ValueError(f"{argument}={given!r} is not one of {', '.join(map(repr, allowed))}.")


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


def is_integer(value: Any) -> bool:
    """Whether it is a whole number of Python or numpy; booleans are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; booleans are none."""
    return is_integer(value) or (isinstance(value, float | np.floating) and np.isfinite(value))


def check_from_0(argument: str, given: Any) -> None:
    """Raise a ``ValueError`` unless ``given`` is a finite number that is not negative."""
    if not is_number(given) or given < 0:
        raise ValueError(f"{argument}={given!r} is not a number from 0 on.")


def is_list_of(values: Any, allowed: Callable[[Any], bool]) -> bool:
    """Whether it is a list, tuple or array with at least one element, all of them allowed."""
    is_list = isinstance(values, list | tuple | np.ndarray)
    return is_list and len(values) > 0 and all(map(allowed, values))


def is_positive_integer(value: Any) -> bool:
    """Whether it is a whole number from 1 on."""
    return is_integer(value) and value > 0


def check_positive_integer(argument: str, given: Any) -> None:
    """Raise a ``ValueError`` unless ``given`` is one."""
    if not is_positive_integer(given):
        raise ValueError(f"{argument}={given!r} is not a positive integer.")


def check_positive_integers(argument: str, given: Any) -> None:
    """Raise a ``ValueError`` unless ``given`` is a list of them."""
    if not is_list_of(given, is_positive_integer):
        raise ValueError(f"{argument}={given!r} is not a list of positive integers.")


def check_seed(seed: Any) -> None:
    """Raise a ``ValueError`` unless numpy takes the seed."""
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} is not an integer from 0 to 2**32 - 1.")


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


def dense(matrix: Any) -> np.ndarray:
    """Return a matrix in memory as an array, whether it is sparse or one already."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def row_blocks(matrix: Any, n_rows: int | None = None) -> Iterator[Any]:
    """Yield a limited number of rows at once, in memory, of a matrix that may not be.

    Parameters
    ----------
    matrix
        With rows that can be sliced.
    n_rows
        Their number, for a matrix that doesn't know its shape.
    """
    for start in range(0, matrix.shape[0] if n_rows is None else n_rows, _ROWS_AT_ONCE):
        yield computed(matrix[start : start + _ROWS_AT_ONCE])


def computed(block: Any) -> Any:
    """Return a matrix as it is, or in memory if it is one of dask's."""
    return block.compute() if hasattr(block, "compute") else block


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
