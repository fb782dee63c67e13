"""How labels respond on average, and how an unseen label would respond."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.linear_model import RidgeCV

from trvae._utils._matrices import dense, row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable


# Fewer labels leave the regression nothing to choose its penalty by.
MIN_LABELS = 3


# Penalties to choose from, in units of the mean squared norm of the centred features.
_PENALTIES = np.logspace(-3, 3, 13)


# Shares are counts per ten thousand before their logarithm is taken.
_PER = 1e4


# A change on the scale of log_share, or of log-normalised values, that has no limit.
_NEVER_TOO_MUCH = 0.5


class LinearResponse:
    """Ridge regression, over labels, of the change of each gene on the profile before it.

    Its penalty is chosen by leaving out one label at a time.

    Parameters
    ----------
    before, after
        Mean profiles of the labels under two conditions, log-transformed,
        ``n_labels x n_genes`` with at least three labels.
    """

    def __init__(self, before: np.ndarray, after: np.ndarray):
        self._center = before.mean(0)
        self._scale = max(float(before.std()), 1e-12)
        features = (before - self._center) / self._scale
        unit = max(float(np.square(features).sum(1).mean()), 1e-12)
        # Of the few labels' span, or there were n_genes x n_genes coefficients.
        self._axes = np.linalg.svd(features, full_matrices=False)[2].T
        self._ridge = RidgeCV(alphas=unit * _PENALTIES).fit(features @ self._axes, after - before)

    def change(self, profiles: np.ndarray) -> np.ndarray:
        """Predict the change of profiles.

        Parameters
        ----------
        profiles
            Before the change, log-transformed, ``n x n_genes``.

        Returns
        -------
        ``n x n_genes``.
        """
        return self._ridge.predict((profiles - self._center) / self._scale @ self._axes)


def left_out_errors(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What each label's change differs by from the one that the other labels predict.

    Parameters
    ----------
    before, after
        As in :class:`LinearResponse`.

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


class ResponseOfLabels:
    """Keeps a decoder's prediction close to how the labels respond.

    Its change of a gene is limited by the labels' changes, then averaged with their linear
    response.

    Parameters
    ----------
    before, after
        Mean profiles of the labels under the source and the target condition, as in
        :class:`GroupMeans`, ``n_labels x n_genes``.
    share_before, share_after
        Shares of the modelled genes in all counts, ``n_labels``.
    weight
        Weight of the linear response, from 0 to 1.
    is_counts
        Whether profiles are shares of counts, or log-normalised values.
    limit
        How many times as far as in any label the decoder may raise or lower a gene, which it
        always may by 0.5; infinity sets no limit.
    """

    def __init__(
        self, before, after, share_before, share_after, *, weight, is_counts, limit=np.inf
    ):
        self._weight = weight
        self._is_counts = is_counts
        if is_counts:
            before, after = log_share(before), log_share(after)
        self._profiles = before, after
        change = after - before
        self._range = None
        if np.isfinite(limit):
            self._range = (
                (limit * change.min(0)).clip(max=-_NEVER_TOO_MUCH),
                (limit * change.max(0)).clip(min=_NEVER_TOO_MUCH),
            )
            if is_counts:
                # Of log_share, which is between 0 and 10: factors need no logarithm of each cell.
                least, most = self._range
                self._range = np.exp(least), np.exp(most.clip(max=10))
        self._linear = LinearResponse(before, after)
        log_ratio = np.log(share_after / share_before)
        known = np.isfinite(log_ratio)
        self._growth = float(np.exp(log_ratio[known].mean())) if known.any() else 1.0

    @functools.cached_property
    def _errors(self) -> np.ndarray:
        return left_out_errors(*self._profiles)

    def draw_deviation(self, rng: np.random.Generator) -> np.ndarray:
        """Draw what a label's response differs by from its prediction.

        Parameters
        ----------
        rng
            Source of chance.

        Returns
        -------
        ``n_genes``, for :meth:`__call__`: from a multivariate t distribution whose scatter matrix
        is that of :func:`left_out_errors`, with as many degrees of freedom as there are labels.
        """
        n_labels = len(self._errors)
        weights = rng.standard_normal(n_labels) / np.sqrt(rng.chisquare(n_labels))
        return weights @ self._errors

    def __call__(
        self, source: np.ndarray, target: np.ndarray, deviation: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the expectation under the target condition.

        Parameters
        ----------
        source, target
            Decoded expected counts or values of cells, ``n_cells x n_genes``.
        deviation
            What to add on the scale of the profiles, ``n_genes``, see :meth:`draw_deviation`.
        """
        if self._is_counts:
            library = source.sum(1, keepdims=True)
            profiles = log_share(source / library)
            linear = library * _share(profiles + self._linear.change(profiles))
        else:
            linear = source + self._linear.change(source)
        response = (1 - self._weight) * self._limited(source, target) + self._weight * linear
        if deviation is not None and self._is_counts:
            response = library * _share(log_share(response / library) + deviation)
        elif deviation is not None:
            response = response + deviation
        return self._growth * response

    def _limited(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return the decoder's expectation with its change within the range."""
        if self._range is None:
            return target
        least, most = self._range
        if not self._is_counts:
            return target.clip(source + least, source + most)
        one = source.sum(1, keepdims=True) / _PER
        return target.clip((one + source) * least - one, (one + source) * most - one)


def log_share(share: np.ndarray) -> np.ndarray:
    """Logarithm of one plus counts per ten thousand, of shares of the library."""
    # Several times as fast as log1p, whose precision close to 0 is of no use here.
    return np.log(1 + _PER * share)


def _share(log_share: np.ndarray) -> np.ndarray:
    """Inverse of :func:`log_share`, at least 0."""
    return np.maximum(np.exp(log_share) - 1, 0) / _PER


class GroupMeans(NamedTuple):
    """Mean profile of each label's cells under each condition; NaN where there are none."""

    profile: np.ndarray
    """Of counts their shares of the library, ``n_labels x n_conditions x n_genes``."""
    modelled_share: np.ndarray
    """Share of the modelled genes in all counts, ``n_labels x n_conditions``; 1 if unknown."""


def group_means(
    matrix,
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
        Whether cells are scaled to sum to one.
    library
        Counts of each cell over all genes that were measured, ``n_cells``.
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
    """Average cells that come block by block, as :func:`group_means`.

    Parameters
    ----------
    blocks
        Of each the matrix, the codes of its labels and conditions, and the library or ``None``.
    shape, is_counts
        As in :func:`group_means`.
    """
    n_groups = shape[0] * shape[1]
    n_cells, share = np.zeros(n_groups), np.zeros(n_groups)
    total: Any = 0.0
    for block, label, condition, library in blocks:
        # scvi-tools keeps codes as short integers.
        group = label.astype(np.int64) * shape[1] + condition
        n_cells += np.bincount(group, minlength=n_groups)
        indicator = sparse.csr_matrix(
            (np.ones(len(group)), (group, np.arange(len(group)))), (n_groups, len(group))
        )
        if is_counts:
            # Half precision ends at 65,504.
            sums = np.maximum(np.ravel(block.sum(1, dtype=np.float64)), 1e-12)
            block = sparse.diags_array(1 / sums) @ block
            share += indicator @ (np.ones(len(sums)) if library is None else sums / library)
        total = total + dense(indicator @ block)
    n_cells[n_cells == 0] = np.nan
    modelled_share = share / n_cells if is_counts else np.ones(n_groups)
    return GroupMeans(
        (total / n_cells[:, None]).reshape(*shape, -1), modelled_share.reshape(shape)
    )
