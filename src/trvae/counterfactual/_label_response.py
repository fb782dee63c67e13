"""How labels respond on average, and how a label without measured response would respond."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import RidgeCV
from torch import nn

from trvae._utils._matrices import dense, row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable


# With fewer labels, leave-one-out has too little to choose the penalty by.
MIN_LABELS = 3

# Candidate penalties, in units of the mean squared norm of the centred features.
_PENALTIES = np.logspace(-3, 3, 13)

# Library size to which profiles are scaled before the logarithm.
_TARGET_SUM = 1e4

# A gene may always change by this much, on the scale of log_share or of log-normalised values.
_MIN_CHANGE_LIMIT = 0.5


class LinearResponse:
    """Ridge regression, over labels, of each gene's change on the profile before the change.

    The penalty is chosen by leave-one-out cross-validation over labels.

    Parameters
    ----------
    before, after
        Mean profiles of the labels under two conditions, log-transformed,
        ``n_labels x n_genes`` with at least three labels.
    """

    def __init__(self, before: np.ndarray, after: np.ndarray):
        center, scale = before.mean(0), max(float(before.std()), 1e-12)
        features = (before - center) / scale
        unit = max(float(np.square(features).sum(1).mean()), 1e-12)
        # In the labels' span, to avoid n_genes x n_genes coefficients.
        axes = np.linalg.svd(features, full_matrices=False)[2].T
        ridge = RidgeCV(alphas=unit * _PENALTIES).fit(features @ axes, after - before)
        self.axes = axes / scale
        self.origin = center @ self.axes
        self.coefficients = ridge.coef_.T
        self.intercept = ridge.intercept_

    def change(self, profiles: np.ndarray) -> np.ndarray:
        """Predict the change of profiles.

        Parameters
        ----------
        profiles
            Log-transformed profiles before the change, ``n x n_genes``.

        Returns
        -------
        ``n x n_genes``.
        """
        return (profiles @ self.axes - self.origin) @ self.coefficients + self.intercept


def left_out_errors(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Difference between each label's change and its prediction from the other labels.

    Parameters
    ----------
    before, after
        See :class:`LinearResponse`: mean profiles, ``n_labels x n_genes``.

    Returns
    -------
    ``n_labels x n_genes``.
    """
    errors = []
    for label in range(len(before)):
        others = np.arange(len(before)) != label
        predicted = LinearResponse(before[others], after[others]).change(before[[label]])[0]
        errors.append(after[label] - before[label] - predicted)
    return np.array(errors)


class ResponseOfLabels(nn.Module):
    """Keeps the decoder's prediction close to the measured response of the labels.

    The decoder's change of a gene is limited to ``limit`` times the range of the labels' changes.
    The result is averaged with the labels' linear response, with ``weight`` for the latter. It is
    computed in the type and on the device to which this module is moved, at first in float64.

    Parameters
    ----------
    before, after
        Mean profiles of the labels under the source and the target condition, see
        :class:`GroupMeans`, ``n_labels x n_genes``.
    share_before, share_after
        Shares of the modelled genes in all counts, ``n_labels``.
    weight
        Weight of the linear response, from 0 to 1.
    is_counts
        Whether profiles are shares of counts, or log-normalised values.
    limit
        Limit of the decoder's change of a gene, as a multiple of the largest rise and fall in any
        label. A change of 0.5 is always allowed; infinity sets no limit.
    """

    _lowest: torch.Tensor
    _highest: torch.Tensor
    _axes: torch.Tensor
    _origin: torch.Tensor
    _coefficients: torch.Tensor
    _intercept: torch.Tensor

    def __init__(
        self,
        before: np.ndarray,
        after: np.ndarray,
        share_before: np.ndarray,
        share_after: np.ndarray,
        *,
        weight: float,
        is_counts: bool,
        limit: float = np.inf,
    ):
        super().__init__()
        self._weight = weight
        self._is_counts = is_counts
        if is_counts:
            before, after = log_share(before), log_share(after)
        self._profiles = before, after
        change = after - before
        self._is_limited = bool(np.isfinite(limit))
        if self._is_limited:
            lowest = (limit * change.min(0)).clip(max=-_MIN_CHANGE_LIMIT)
            highest = (limit * change.max(0)).clip(min=_MIN_CHANGE_LIMIT)
            if is_counts:
                # As factors, so that cells need no logarithm. A log share is at most 9.3.
                lowest, highest = np.exp(lowest), np.exp(highest.clip(max=10))
            self.register_buffer("_lowest", torch.from_numpy(lowest))
            self.register_buffer("_highest", torch.from_numpy(highest))
        linear = LinearResponse(before, after)
        for name in ("axes", "origin", "coefficients", "intercept"):
            self.register_buffer(f"_{name}", torch.as_tensor(getattr(linear, name)))
        log_ratio = np.log(share_after / share_before)
        known = np.isfinite(log_ratio)
        self._library_ratio = float(np.exp(log_ratio[known].mean())) if known.any() else 1.0

    def forward(
        self, source: torch.Tensor, target: torch.Tensor, deviation: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Expectation under the target condition.

        Parameters
        ----------
        source, target
            Decoded expected counts or values under both conditions, ``n_cells x n_genes``.
        deviation
            A deviation of the response from :meth:`draw_deviation`, ``n_genes``.

        Returns
        -------
        ``n_cells x n_genes``.
        """
        if not self._is_counts:
            if self._is_limited:
                target = target.clamp(source + self._lowest, source + self._highest)
            response = torch.lerp(target, source + self._linear_change(source), self._weight)
            return response if deviation is None else response + deviation
        # log_share(x / library) = log((pseudocount + x) / pseudocount)
        pseudocount = source.sum(1, keepdim=True) / _TARGET_SUM
        shifted = pseudocount + source
        if self._is_limited:
            target = target.clamp(
                shifted * self._lowest - pseudocount, shifted * self._highest - pseudocount
            )
        factor = self._linear_change((shifted / pseudocount).log_()).exp_()
        linear = factor.mul_(shifted).sub_(pseudocount).clamp_(min=0)
        response = torch.lerp(target, linear, self._weight)
        if deviation is not None:
            response = ((pseudocount + response) * deviation.exp() - pseudocount).clamp(min=0)
        return response.mul_(self._library_ratio)

    def _linear_change(self, profiles: torch.Tensor) -> torch.Tensor:
        """Like :meth:`LinearResponse.change`."""
        features = torch.addmm(self._origin, profiles, self._axes, beta=-1)
        return torch.addmm(self._intercept, features, self._coefficients)

    def draw_deviation(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a deviation of a label's response from its prediction.

        The spread is estimated by leaving out each label in turn: a multivariate t distribution
        with as many degrees of freedom as labels, whose scatter matrix is that of
        :func:`left_out_errors`.

        Parameters
        ----------
        rng
            Random number generator.

        Returns
        -------
        ``n_genes``, on the scale of the log-transformed profiles.
        """
        n_labels = len(self._errors)
        weights = rng.standard_normal(n_labels) / np.sqrt(rng.chisquare(n_labels))
        return weights @ self._errors

    @functools.cached_property
    def _errors(self) -> np.ndarray:
        return left_out_errors(*self._profiles)


def log_share(share: np.ndarray) -> np.ndarray:
    """``log(1 + 10,000 share)`` for shares of the library."""
    # Several times faster than log1p; precision close to 0 does not matter here.
    return np.log(1 + _TARGET_SUM * share)


class GroupMeans(NamedTuple):
    """Mean profile of the cells of each label and condition; NaN where there are no cells."""

    profile: np.ndarray
    """``n_labels x n_conditions x n_genes``; of counts, mean shares of the library."""
    modelled_share: np.ndarray
    """Share of the modelled genes in all counts, ``n_labels x n_conditions``; 1 if unknown."""


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
        Whether to scale cells to a sum of one.
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
    n_cells, share = np.zeros(n_groups), np.zeros(n_groups)
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
            sums = np.maximum(np.ravel(block.sum(1, dtype=np.float64)), 1e-12)
            block = sparse.diags_array(1 / sums) @ block
            share += indicator @ (np.ones(len(sums)) if library is None else sums / library)
        total = total + dense(indicator @ block)
    n_cells[n_cells == 0] = np.nan
    modelled_share = share / n_cells if is_counts else np.ones(n_groups)
    return GroupMeans(
        (total / n_cells[:, None]).reshape(*shape, -1), modelled_share.reshape(shape)
    )
