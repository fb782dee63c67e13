"""How labels respond on average, and how a label without measured response would respond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import RidgeCV
from torch import nn

from trvae._utils._matrices import dense, row_blocks
from trvae._utils._minimums import MIN_CELLS, MIN_LABELS

if TYPE_CHECKING:
    from collections.abc import Iterable


# Candidate penalties, in units of the mean squared norm of the centred features.
_PENALTIES = np.logspace(-3, 3, 13)

# Library size to which profiles are scaled before the logarithm.
TARGET_SUM = 1e4

# Of the modelled genes in all counts, lest labels without counts divide by it.
_LOWEST_SHARE = 1e-6

# Cells with a smaller sum have no counts; what is expected of them is not exactly 0.
LEAST_COUNTS = 1e-3

# A gene may always change by this much, on the scale of log_share or of log-normalised values.
_MIN_CHANGE_LIMIT = 0.5


class LinearResponse:
    """Ridge regression, over labels, of each gene's change on the profile before the change.

    The penalty is chosen by leave-one-out cross-validation over labels. With fewer than three
    labels, it is the mean change.

    Parameters
    ----------
    before
        Mean profiles of the labels before the change, log-transformed, ``n_labels x n_genes``.
    change
        What is to be predicted from them, ``n_labels x n_outputs``.
    """

    def __init__(self, before: np.ndarray, change: np.ndarray):
        # Leave-one-out has too little to choose the penalty by.
        if len(before) < MIN_LABELS:
            self.axes, self.origin = np.zeros((before.shape[1], 0)), np.zeros(0)
            self.coefficients = np.zeros((0, change.shape[1]))
            self.intercept = change.mean(0)
            return
        center, scale = before.mean(0), max(float(before.std()), 1e-12)
        features = (before - center) / scale
        unit = max(float(np.square(features).sum(1).mean()), 1e-12)
        # In the labels' span, to avoid n_genes x n_genes coefficients.
        axes = np.linalg.svd(features, full_matrices=False)[2].T
        ridge = RidgeCV(alphas=unit * _PENALTIES).fit(features @ axes, change)
        self.axes = axes / scale
        self.origin = center @ self.axes
        # For a single output, scikit-learn leaves out its dimension.
        self.coefficients = ridge.coef_.reshape(change.shape[1], -1).T
        self.intercept = np.atleast_1d(ridge.intercept_)

    def change(self, profiles: np.ndarray) -> np.ndarray:
        """Predict the change of profiles.

        Parameters
        ----------
        profiles
            Log-transformed profiles before the change, ``n x n_genes``.

        Returns
        -------
        ``n x n_outputs``.
        """
        return (profiles @ self.axes - self.origin) @ self.coefficients + self.intercept


class Weights(NamedTuple):
    """Shares of three predictions in a change; they need not add up to 1."""

    network: float
    """Of the decoder's change, limited to the range of the labels' changes."""
    linear: float
    """Of :class:`LinearResponse`."""
    shift: float
    """Of the labels' mean change."""


class ResponseOfLabels(nn.Module):
    """A change of expression, made of the decoder's change and the measured changes of labels.

    The decoder's change of a gene is limited to ``limit`` times the range of the labels' changes.
    It is added up with the labels' linear response and their mean change on the scale of
    :func:`log_share`, or of log-normalised values. All is computed in the type and on the device to
    which this module is moved, at first in float64.

    Parameters
    ----------
    before, after
        Mean profiles of the labels under the source and the target condition, ``n_labels x n_genes``:
        shares of the library or values. Shares of the modelled genes can add up to less than 1, and to more
        under the target than under the source; this is predicted for each cell, too.
    weights
        Weights of the three changes.
    is_counts
        Whether profiles are shares of counts, or log-normalised values.
    limit
        Limit of the decoder's change of a gene, as a multiple of the largest rise and fall in any
        label. A change of 0.5 is always allowed; infinity sets no limit.
    has_size_factors
        Whether the decoder's rates have sums of their own, which can differ between conditions.
    decoder_grows
        Whether only such a decoder knows how the sum changes, as shares are not of a measured library.
    """

    _lowest: torch.Tensor
    _highest: torch.Tensor
    _axes: torch.Tensor
    _origin: torch.Tensor
    _coefficients: torch.Tensor
    _intercept: torch.Tensor
    _growth_coefficients: torch.Tensor
    _growth_intercept: torch.Tensor

    def __init__(
        self,
        before: np.ndarray,
        after: np.ndarray,
        *,
        weights: Weights,
        is_counts: bool,
        limit: float = np.inf,
        has_size_factors: bool = False,
        decoder_grows: bool = False,
    ):
        super().__init__()
        self._weight_of_network = weights.network
        self._is_counts = is_counts
        self._modelled_share = 1.0
        growth = np.zeros((len(before), 1))
        if is_counts:
            shares = before.sum(1), after.sum(1)
            self._modelled_share = max(float(shares[0].mean()), _LOWEST_SHARE)
            # Of labels without any counts it is not known.
            counted = np.minimum(*shares) > _LOWEST_SHARE
            growth[counted, 0] = np.log(shares[1][counted] / shares[0][counted])
            before, after = log_share(before), log_share(after)
        self._has_size_factors, self._decoder_grows = has_size_factors, decoder_grows
        change = after - before
        self._is_limited = bool(np.isfinite(limit))
        if self._is_limited:
            lowest = (limit * change.min(0)).clip(max=-_MIN_CHANGE_LIMIT)
            highest = (limit * change.max(0)).clip(min=_MIN_CHANGE_LIMIT)
            self.register_buffer("_lowest", torch.from_numpy(lowest))
            self.register_buffer("_highest", torch.from_numpy(highest))
        linear, of_growth = LinearResponse(before, change), LinearResponse(before, growth)
        of_labels = {
            "axes": linear.axes,
            "origin": linear.origin,
            "coefficients": weights.linear * linear.coefficients,
            "intercept": weights.linear * linear.intercept + weights.shift * change.mean(0),
            "growth_coefficients": of_growth.coefficients,
            "growth_intercept": of_growth.intercept,
        }
        for name, values in of_labels.items():
            self.register_buffer(f"_{name}", torch.as_tensor(values))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Expectation under the target condition.

        Parameters
        ----------
        source, target
            Decoded expected counts or values under both conditions, ``n_cells x n_genes``.

        Returns
        -------
        ``n_cells x n_genes``.
        """
        if not self._is_counts:
            return source + self._change(self._features(source), target - source)
        # log_share(x / library) = log((pseudocount + x) / pseudocount)
        library = source.sum(1, keepdim=True) / self._modelled_share
        pseudocount = library / TARGET_SUM
        before = (pseudocount + source).div_(pseudocount).log_()
        features = self._features(before)
        if self._has_size_factors:
            of_decoder = target.sum(1, keepdim=True) / source.sum(1, keepdim=True).clamp(min=1e-12)
            target = target / of_decoder.clamp(min=1e-12)
        # The decoder's rates now have the same sum under both conditions.
        growth = torch.addmm(self._growth_intercept, features, self._growth_coefficients).exp_()
        after = (target * growth).add_(pseudocount).div_(pseudocount).log_()
        change = self._change(features, after.sub_(before))
        expected = before.add_(change).exp_().sub_(1).mul_(pseudocount).clamp_(min=0)
        if self._decoder_grows:
            expected.mul_(of_decoder)
        return expected

    def _features(self, profiles: torch.Tensor) -> torch.Tensor:
        """Profiles in the span of the labels'."""
        return torch.addmm(self._origin, profiles, self._axes, beta=-1)

    def _change(self, features: torch.Tensor, of_network: torch.Tensor) -> torch.Tensor:
        """Add up the changes, ``n_cells x n_genes``."""
        if self._is_limited:
            of_network = of_network.clamp(self._lowest, self._highest)
        of_labels = torch.addmm(self._intercept, features, self._coefficients)
        return of_labels.add_(of_network, alpha=self._weight_of_network)


def has_enough_cells(n_cells: np.ndarray) -> np.ndarray:
    """Which labels to learn from: those with 20 cells under both conditions, if there are three.

    Parameters
    ----------
    n_cells
        Number of each label's cells under the condition with fewer of them, ``n_labels``.

    Returns
    -------
    A mask, ``n_labels``; of all labels with cells if fewer than three have 20.
    """
    enough = n_cells >= MIN_CELLS
    return enough if enough.sum() >= MIN_LABELS else n_cells > 0


def log_share(share: np.ndarray) -> np.ndarray:
    """``log(1 + 10,000 share)`` for shares of the library."""
    # Several times faster than log1p; precision close to 0 does not matter here.
    return np.log(1 + TARGET_SUM * share)


def share_of_log(log: np.ndarray) -> np.ndarray:
    """Inverse of :func:`log_share`; 0 for what is below."""
    return np.expm1(log).clip(min=0) / TARGET_SUM


class GroupMeans(NamedTuple):
    """Mean profile of the cells of each label and condition; NaN where there are no cells."""

    profile: np.ndarray
    """``n_labels x n_conditions x n_genes``; of counts, mean shares of the modelled genes' sum."""
    modelled_share: np.ndarray
    """Mean share of the modelled genes in all counts, ``n_labels x n_conditions``; 1 if unknown."""
    n_cells: np.ndarray
    """``n_labels x n_conditions``."""

    @property
    def of_library(self) -> np.ndarray:
        """The profile as shares of the library, or values, ``n_labels x n_conditions x n_genes``."""
        return self.profile * self.modelled_share[..., None]


def group_means(
    matrix: Any,
    label: np.ndarray,
    condition: np.ndarray,
    shape: tuple[int, int],
    *,
    is_counts: bool,
    library: np.ndarray | None = None,
) -> GroupMeans:
    """Average cells by label and condition.

    Parameters
    ----------
    matrix
        Counts or log-normalised values, dense, sparse or backed, ``n_cells x n_genes``.
    label, condition
        Codes of each cell, ``n_cells``.
    shape
        Number of labels and of conditions.
    is_counts
        Whether to scale cells to a sum of one; cells without counts are left out.
    library
        Counts of each cell over all measured genes, ``n_cells``.
    """

    def blocks():
        stop = 0
        for block in row_blocks(matrix, len(label)):
            rows = slice(stop, stop := stop + block.shape[0])
            yield block, label[rows], condition[rows], None if library is None else library[rows]

    return group_means_of_blocks(blocks(), shape, is_counts=is_counts)


def group_means_of_blocks(
    blocks: Iterable[tuple[Any, np.ndarray, np.ndarray, np.ndarray | None]],
    shape: tuple[int, int],
    *,
    is_counts: bool,
) -> GroupMeans:
    """Average cells by label and condition, block by block.

    Parameters
    ----------
    blocks
        Matrix, codes of labels, codes of conditions, and library sizes or ``None`` of each block.
    shape, is_counts
        See :func:`group_means`: number of labels and conditions, and whether to scale cells.
    """
    n_groups = shape[0] * shape[1]
    n_cells, n_counted, share = np.zeros((3, n_groups))
    total: Any = 0.0
    for block, label, condition, library in blocks:
        # scvi-tools stores codes as short integers, which would overflow.
        group = label.astype(np.int64) * shape[1] + condition
        n_cells += np.bincount(group, minlength=n_groups)
        indicator = sparse.csr_matrix(
            (np.ones(len(group)), (group, np.arange(len(group)))), (n_groups, len(group))
        )
        if is_counts:
            # In double precision: half precision ends at 65,504.
            sums = np.ravel(block.sum(1, dtype=np.float64))
            counted = sums > LEAST_COUNTS
            n_counted += indicator @ counted
            block = sparse.diags_array(counted / np.where(counted, sums, 1)) @ block
            share += indicator @ (np.ones(len(sums)) if library is None else sums / library)
        total = total + dense(indicator @ block)
    divisor, modelled_share = np.where(n_cells > 0, n_cells, np.nan), np.ones(n_groups)
    if is_counts:
        modelled_share = share / divisor
        divisor = np.where(n_cells > 0, n_counted.clip(min=1), np.nan)
    return GroupMeans(
        (total / divisor[:, None]).reshape(*shape, -1),
        modelled_share.reshape(shape),
        n_cells.reshape(shape),
    )
