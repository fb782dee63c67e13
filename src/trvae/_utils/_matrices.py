"""Rows of matrices, whether dense, sparse, on disk or dask arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
import hashlib

if TYPE_CHECKING:
    from collections.abc import Iterator


_ROWS_AT_ONCE = 10_000


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


_N_SAMPLED = 64


def read_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Return some rows, read from disk if they are there.

    Parameters
    ----------
    matrix
        In memory, on disk or a dask array.
    rows
        Positions, in any order.
    """
    # Files are read in ascending order only.
    ascending, inverse = np.unique(rows, return_inverse=True)
    return computed(matrix[ascending])[inverse]


def digest(*arrays: np.ndarray) -> str:
    """Digest of numbers or names, which differs if any of them does."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes() if array.dtype.kind in "fui" else str(list(array)).encode())
    return found.hexdigest()


def digest_of_rows(matrix: Any, rows: np.ndarray) -> str:
    """Digest of a sample of rows, by which other values are known without reading all of them.

    Parameters
    ----------
    matrix
        As in :func:`read_rows`.
    rows
        Positions, of which at most 64 are read, equally far from each other.
    """
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, _N_SAMPLED).round().astype(int))]
    return digest(dense(read_rows(matrix, sample)))
