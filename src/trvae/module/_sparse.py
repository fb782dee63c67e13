"""A first layer that skips zeros: an epoch of expression takes up to a fifth less time on CPUs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding_bag

# Above this share of entries that are not 0, a dense product is faster.
_MAX_DENSITY = 0.1


class SparseMatrix(NamedTuple):
    """The non-zero entries of a matrix."""

    shape: torch.Size
    """Rows and columns."""
    positions: torch.Tensor
    """In the flattened matrix, ascending, ``n_entries``."""
    values: torch.Tensor
    """``n_entries``."""

    def log1p(self) -> SparseMatrix:
        """Return ``log(1 + x)`` of every entry."""
        return self._replace(values=self.values.log1p())


def nonzero_positions(x: torch.Tensor) -> torch.Tensor:
    """Positions of the non-zero entries in the flattened tensor on the CPU, ascending."""
    # Of a tensor of floats it takes several times as long; torch's takes twice as long.
    return torch.from_numpy(np.flatnonzero(x.bool().reshape(-1).numpy()))


def sparse_where_faster(x: torch.Tensor) -> torch.Tensor | SparseMatrix:
    """Return the non-zero entries of a matrix, or itself if that is faster."""
    if x.device.type != "cpu" or x.requires_grad:
        return x
    positions = nonzero_positions(x)
    if len(positions) > _MAX_DENSITY * x.numel():
        return x
    return SparseMatrix(x.shape, positions, x.reshape(-1)[positions])


class InputLinear(nn.Module):
    """A linear layer for an input that needs no derivative and may be sparse.

    Its weight is ``n_in x n_out``, the transpose of :class:`torch.nn.Linear`'s, so that the weights
    of a gene are contiguous.

    Parameters
    ----------
    layer
        The layer whose weights it takes.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().t().contiguous())
        self.bias = layer.bias

    def forward(self, x: torch.Tensor | SparseMatrix) -> torch.Tensor:
        """Map ``n_cells x n_in`` to ``n_cells x n_out``."""
        if isinstance(x, SparseMatrix):
            return _SparseProduct.apply(*x, self.weight) + self.bias
        return x @ self.weight + self.bias


class _SparseProduct(torch.autograd.Function):
    """A sparse matrix times ``weight`` as sums of its rows, and the derivative for ``weight``."""

    @staticmethod
    def forward(ctx, shape, positions, values, weight):
        n_rows, n_columns = shape
        rows = positions.div(n_columns, rounding_mode="floor")
        columns = positions - rows * n_columns
        values = values.to(weight.dtype)
        ctx.n_columns = n_columns
        ctx.save_for_backward(rows, columns, values)
        return _sum_rows(weight, columns, values, rows, n_rows)

    @staticmethod
    def backward(ctx, grad):
        rows, columns, values = ctx.saved_tensors
        # NumPy's radix sort of short integers takes a tenth of the time of torch's sort.
        short = columns.numpy().astype(np.min_scalar_type(ctx.n_columns))
        order = torch.from_numpy(short.argsort(kind="stable"))
        grad_weight = _sum_rows(
            grad.contiguous(), rows[order], values[order], columns[order], ctx.n_columns
        )
        return None, None, None, grad_weight


def _sum_rows(table, index, weight, group, n_groups):
    """Weighted sums of a table's rows, one for each group; ``group`` ascends."""
    bounds = torch.searchsorted(group, torch.arange(n_groups + 1))
    return embedding_bag(
        index, table, bounds, mode="sum", per_sample_weights=weight, include_last_offset=True
    )
