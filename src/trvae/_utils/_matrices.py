"""Rows of matrices: dense, sparse, on disk, or dask arrays; and non-zero entries of tensors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROWS_AT_ONCE = 10_000
_DIGEST_SIZE = 16


def dense(matrix: Any) -> np.ndarray:
    """Return a matrix in memory, sparse or not, as an array."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def computed(block: Any) -> Any:
    """Return a dask array in memory, and any other matrix as it is."""
    return block.compute() if is_dask(block) else block


def is_dask(matrix: Any) -> bool:
    """Whether it is a dask array. dask itself is optional."""
    return hasattr(matrix, "compute")


def stacked(blocks: list) -> np.ndarray | sparse.csr_matrix:
    """Concatenate blocks of rows, all dense or all sparse."""
    if len(blocks) == 1:
        return blocks[0]
    return sparse.vstack(blocks, "csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)


def nonzero_positions(values: torch.Tensor) -> torch.Tensor:
    """Positions of the non-zero entries in the flattened tensor, ascending."""
    # Of a tensor of floats it takes several times as long.
    flat = values.bool().reshape(-1)
    if values.device.type == "cpu":
        # NumPy's takes a third of the time.
        return torch.from_numpy(np.flatnonzero(flat.numpy()))
    return flat.nonzero().squeeze(1)


def nonzero_entries(matrix: torch.Tensor) -> sparse.csr_matrix:
    """Non-zero entries of a dense tensor, which may be on any device, as a matrix in memory."""
    n_rows, n_columns = matrix.shape
    positions = nonzero_positions(matrix)
    starts = torch.arange(n_rows + 1, device=matrix.device) * n_columns
    data = matrix.reshape(-1)[positions], (positions % n_columns).int()
    indptr = torch.searchsorted(positions, starts).int()
    parts = (values.cpu().numpy() for values in (*data, indptr))
    return sparse.csr_matrix(tuple(parts), matrix.shape)


def is_in_memory(matrix: Any) -> bool:
    """Whether it is an array or a sparse matrix of SciPy, not a file or a dask array."""
    return isinstance(matrix, np.ndarray) or sparse.issparse(matrix)


def blocks_in_memory(matrix: Any) -> Iterable[Any]:
    """The matrix itself if it is in memory, or else blocks of its rows, one after another."""
    return [matrix] if is_in_memory(matrix) else row_blocks(matrix)


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
    """BLAKE2 hash of arrays of numbers or names."""
    hashed = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for array in arrays:
        is_numeric = array.dtype.kind in "fui"
        hashed.update(array.tobytes() if is_numeric else "\n".join(map(str, array)).encode())
    return hashed.hexdigest()


def digest_of_matrix(matrix: Any) -> str:
    """Hash of all values of a matrix, whatever its format and type; see :func:`digest`."""
    hashed = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for block in row_blocks(matrix):
        # A copy, as sorting the columns would change the user's matrix.
        rows = sparse.csr_matrix(block, dtype=np.float64, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        for array in (np.diff(rows.indptr), rows.indices):
            hashed.update(array.astype("<i8").tobytes())
        hashed.update(rows.data.astype("<f8").tobytes())
    return hashed.hexdigest()
