"""Maximum mean discrepancy between groups of cells."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


MMDReduction = Literal["mean", "sum"]

BANDWIDTHS: tuple[float, ...] = (
    1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6,
)  # fmt: skip
"""Squared bandwidths of the multi-scale kernel in the trVAE paper's implementation."""

# Pairs of cells for which a GPU takes all bandwidths at once, in up to 80 MB.
_MAX_PAIRS_AT_ONCE = 2**20


def multi_scale_mmd(
    y: torch.Tensor,
    condition: torch.Tensor,
    label: torch.Tensor | None = None,
    bandwidths: Sequence[float] = BANDWIDTHS,
    reduction: MMDReduction = "mean",
) -> torch.Tensor:
    r"""Squared MMD of all pairs of conditions, with a multi-scale Gaussian kernel.

    The MMD of a pair :math:`i, j` is

    .. math::

        \overline{k(y_i, y_i)} + \overline{k(y_j, y_j)} - 2\,\overline{k(y_i, y_j)},
        \qquad k(a, b) = \frac{1}{S} \sum_s \exp\left(-\frac{\lVert a - b \rVert^2}{2 s}\right)

    with means over all pairs of cells, including each cell with itself (the V-statistic), so
    that a sample has a distance of 0 to itself. Groups with fewer than two cells are left out.

    Parameters
    ----------
    y
        Representations to compare, ``n_cells x n_features``.
    condition
        Integer code of each cell's condition, ``n_cells``.
    label
        Integer code of each cell's label, ``n_cells``. If given, conditions are compared within
        each label, and the result is the mean over labels, weighted by the numbers of cells that are
        compared.
    bandwidths
        The values :math:`s`, in units of squared distance.
    reduction
        ``"mean"``: the mean over pairs, in which cells that can't be compared count as 0.
        ``"sum"``: the sum over pairs (the paper's), and the mean over the labels that can be
        compared. With many conditions a minibatch has few cells of each. The sum grows with the
        number of pairs, and would rest on whichever few cells have another one of their group.

    Returns
    -------
    Scalar tensor, non-negative up to rounding; exactly 0 if no two groups can be compared. Its
    precision is that of ``y``, but at least ``float32``.

    References
    ----------
    Gretton et al., *JMLR* 13, 723 (2012), equation 5; Lotfollahi et al., *Bioinformatics* 36,
    i610 (2020), equation 8, which averages the kernel over scales.
    """
    y = y if y.dtype == torch.float64 else y.float()
    with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
        coefficients = _pair_coefficients(condition, label, y.dtype, reduction)
    return _WeightedKernelSum.apply(y, coefficients, tuple(float(s) for s in bandwidths))


def _pair_coefficients(
    condition: torch.Tensor,
    label: torch.Tensor | None,
    dtype: torch.dtype,
    reduction: MMDReduction,
) -> torch.Tensor:
    """Coefficients ``c`` (``n_cells x n_cells``) such that the MMD is ``sum(c * kernel)``.

    A group ``g`` is what a label has of a condition. The sum of ``w_l * MMD^2`` over all pairs of
    groups of each label ``l`` is the sum, over pairs of cells, of the kernel times ``w_l / n_g^2``
    for each other group if both cells are of group ``g``, and ``-w_l / (n_g n_h)`` otherwise.

    All shapes follow from the number of cells, so that a GPU need not be asked for any number.
    """
    same_label = (
        torch.ones(len(condition), len(condition), dtype=torch.bool, device=condition.device)
        if label is None
        else label[:, None] == label
    )
    same_group = same_label & (condition[:, None] == condition)
    same_label = same_label.to(dtype)
    size = same_group.sum(1).to(dtype)
    # Each cell's part of its group, if that can be compared, so that groups are counted by cells.
    part = torch.where(size >= 2, 1 / size, 0.0)
    n_others = (same_label @ part).round() - 1
    part = torch.where(n_others > 0, part, 0.0)
    # Each label's share of the cells that can be compared, 1 for a single label.
    compared = (part > 0).to(dtype)
    n_compared = same_label @ compared
    if reduction == "mean":
        weight = n_compared / len(condition) / (n_others * (n_others + 1) / 2).clamp(min=1)
    else:
        weight = n_compared / compared.sum().clamp(min=1)
    within = torch.where(same_group, n_others[:, None] + 1, 0.0) - same_label
    return within * (weight * part)[:, None] * part


class _WeightedKernelSum(torch.autograd.Function):
    """``sum(c * k)`` for constant symmetric ``c`` and the multi-scale kernel matrix ``k`` of ``y``.

    Kernel and derivative are summed over bandwidths together, so that neither 19 kernel matrices
    nor their graphs are ever held in memory.
    """

    @staticmethod
    def forward(ctx, y, coefficients, bandwidths):
        # Positions above the diagonal, in the flattened symmetric matrix.
        row, column = torch.triu_indices(len(y), len(y), offset=1, device=y.device)
        above = row * len(y) + column
        distance = _squared_distances(y).view(-1).index_select(0, above)
        kernel, derivative = _kernel_and_derivative(distance, bandwidths)
        scale = 1.0 / len(bandwidths)
        weight = coefficients.reshape(-1).index_select(0, above)
        ctx.save_for_backward(y, derivative.mul_(weight).mul_(scale), above)
        # The kernel of a cell with itself is 1 at every bandwidth.
        return 2 * scale * torch.dot(weight, kernel) + coefficients.diagonal().sum()

    @staticmethod
    def backward(ctx, grad):
        y, pull_above, above = ctx.saved_tensors
        # In double precision, as two nearly equal sums are subtracted.
        precise = _precise(y)
        pull = torch.zeros(len(y), len(y), dtype=precise.dtype, device=y.device)
        pull.view(-1).index_copy_(0, above, pull_above.to(precise.dtype))
        pull = pull + pull.T
        grad_y = pull.sum(1, keepdim=True) * precise - pull @ precise
        return grad * (4.0 * grad_y).to(y.dtype), None, None


def _kernel_and_derivative(
    distance: torch.Tensor, bandwidths: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of ``exp(-distance / 2s)`` over bandwidths ``s``, and its derivative, per distance."""
    if distance.device.type != "cpu" and distance.numel() <= _MAX_PAIRS_AT_ONCE:
        rates = _rates(bandwidths, distance.dtype, distance.device)
        terms = (rates * distance).exp_()
        return terms.sum(0), terms.mul_(rates).sum(0)
    kernel = torch.zeros_like(distance)
    derivative = torch.zeros_like(distance)
    nearest, farthest = 0.0, math.inf
    if distance.device.type == "cpu" and len(distance):  # On a GPU, this would synchronise.
        nearest, farthest = map(float, torch.aminmax(distance))
    # Smaller exponentials are negligible beside 1, the kernel of a cell with itself, and their
    # products would be subnormal numbers, which are many times slower.
    lowest = 0.7 * math.log(torch.finfo(distance.dtype).tiny)
    term = torch.empty_like(distance)
    for s in bandwidths:
        if -0.5 / s * nearest > lowest:
            torch.mul(distance, -0.5 / s, out=term)
            if -0.5 / s * farthest < lowest:
                term.clamp_(min=lowest)
            term.exp_()
            kernel += term
            derivative.add_(term, alpha=-0.5 / s)
    return kernel, derivative


@functools.cache
def _rates(
    bandwidths: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Factors of squared distances in the exponents, ``n_bandwidths x 1``.

    Kept, since a copy to the device can't be part of a CUDA graph.
    """
    return torch.tensor([[-0.5 / s] for s in bandwidths], dtype=dtype, device=device)


def _precise(y: torch.Tensor) -> torch.Tensor:
    """``y`` in double precision, unless it is on Apple's GPUs, which lack it."""
    return y if y.device.type == "mps" else y.double()


def _squared_distances(y: torch.Tensor) -> torch.Tensor:
    """Squared distances of all pairs of rows, in the precision of ``y``."""
    precise = _precise(y)
    if precise.dtype == y.dtype:
        # A matrix product in the same precision would leave noise above the smallest bandwidths.
        return torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    centered = precise - precise.mean(0)
    norm = centered.square().sum(1)
    distance = torch.addmm(norm[:, None] + norm, centered, centered.T, alpha=-2)
    return distance.clamp_(min=0).to(y.dtype)
