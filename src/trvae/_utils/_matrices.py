"""Rows of matrices: dense, sparse, on disk, or dask arrays."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS_AT_ONCE = 10_000
_N_SAMPLED = 64


def dense(matrix: Any) -> np.ndarray:
    """Return a matrix in memory, sparse or not, as an array."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def computed(block: Any) -> Any:
    """Return a dask array in memory, and any other matrix as it is."""
    return block.compute() if hasattr(block, "compute") else block


def stacked(blocks: list) -> np.ndarray | sparse.csr_matrix:
    """Concatenate blocks of rows, all dense or all sparse."""
    if len(blocks) == 1:
        return blocks[0]
    return sparse.vstack(blocks, "csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)


def row_blocks(matrix: Any, n_rows: int | None = None) -> Iterator[Any]:
    """Yield blocks of rows in memory; ``n_rows`` is for a matrix without a shape."""
    for start in range(0, matrix.shape[0] if n_rows is None else n_rows, _ROWS_AT_ONCE):
        yield computed(matrix[start : start + _ROWS_AT_ONCE])


def read_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Return rows by position, in any order and repeatedly, in memory."""
    # h5py reads rows in ascending order only, each once.
    ascending, inverse = np.unique(rows, return_inverse=True)
    return computed(matrix[ascending])[inverse]


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays of numbers or names."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(array.tobytes() if array.dtype.kind in "fui" else str(list(array)).encode())
    return hashed.hexdigest()


def digest_of_rows(matrix: Any, rows: np.ndarray) -> str:
    """SHA-256 of at most 64 evenly spaced rows, by which changed values can be noticed."""
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, _N_SAMPLED).round().astype(int))]
    return digest(dense(read_rows(matrix, sample)))
