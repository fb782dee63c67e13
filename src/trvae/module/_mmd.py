"""Maximum mean discrepancy between groups of cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from collections.abc import Sequence


MMDReduction = Literal["mean", "sum"]

BANDWIDTHS: tuple[float, ...] = (
    1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6,
)  # fmt: skip
"""Squared bandwidths of the multi-scale kernel in the trVAE paper's implementation."""


def multi_scale_mmd(
    y: torch.Tensor,
    condition: torch.Tensor,
    label: torch.Tensor | None = None,
    bandwidths: Sequence[float] = BANDWIDTHS,
    reduction: MMDReduction = "mean",
) -> torch.Tensor:
    r"""Squared MMD of all pairs of conditions, with a multi-scale Gaussian kernel.

    It is the mean over pairs :math:`i<j`, or their sum, of

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
        each label, and the result is the mean over labels, weighted by their numbers of cells.
    bandwidths
        The values :math:`s`, in units of squared distance.
    reduction
        Whether to take the ``"mean"`` over pairs of conditions, by which a cell is pulled as much
        however many conditions there are, or the ``"sum"`` (the paper's).

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

    With the normalised indicator ``a`` of the groups and symmetric weights ``w`` between groups,
    the sum of ``w * MMD^2`` over pairs of groups is ``sum((a q a^T) * kernel)`` with
    ``q = diag(w 1) - w``: a single product for any number of conditions.
    """
    if label is None:
        label = torch.zeros_like(condition)
    n_conditions = int(condition.max()) + 1
    # Absent groups are dropped to keep the cost independent of the number of conditions.
    groups, group = torch.unique(label.long() * n_conditions + condition, return_inverse=True)
    indicator = one_hot(group, len(groups)).to(dtype)
    size = indicator.sum(0)

    comparable = size >= 2
    label_of_group = groups // n_conditions
    same_label = label_of_group[:, None] == label_of_group[None, :]
    paired = same_label & comparable[:, None] & comparable[None, :]
    paired.fill_diagonal_(False)
    has_pair = paired.any(1)
    # Each label's share of the cells that can be compared, 1 for a single label.
    compared = size * has_pair
    share = (same_label.to(dtype) @ compared) / compared.sum().clamp(min=1)

    if reduction == "mean":
        n_others = paired.sum(1)
        n_pairs = n_others * (n_others + 1) / 2
        share = share / n_pairs.clamp(min=1)
    weight = paired * share[:, None]
    quadratic = torch.diag(weight.sum(1)) - weight
    normalised = indicator / size
    return normalised @ quadratic @ normalised.T


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
        kernel = torch.zeros_like(distance)
        derivative = torch.zeros_like(distance)
        nearest, farthest = 0.0, math.inf
        if y.device.type == "cpu" and len(distance):  # On a GPU, this would synchronise.
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
