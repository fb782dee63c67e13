"""What happened to labels that were left out: weights of predictions, and their errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import nnls
from scipy.spatial.distance import pdist, squareform

from trvae._utils._minimums import MIN_LABELS
from trvae.counterfactual._label_response import (
    TARGET_SUM,
    LinearResponse,
    Weights,
    share_of_log,
)

# Genes with a similar expected error share a quantile. More genes make quantiles exact, fewer local.
_GENES_PER_BIN, _MAX_BINS = 200, 10

# Genes that change most in a label, of which an interval must hold as many as of all.
_N_TOP = 100
_FEWEST_FOR_QUANTILE = 20

_N_REWEIGHTINGS = 5

# Errors below this quantile of what is expected count as much as those at it.
_LOWEST_QUANTILE = 0.05

# Numbers of labels that the prior may count as.
_SHRINKAGES = (1.0, 2.0, 4.0, 8.0, 16.0, np.inf)


class LeftOut(NamedTuple):
    """Changes of labels, and what was predicted without them. All are ``n_labels x n_genes``.

    The scale is that of :func:`log_share`, or of log-normalised values.
    """

    before: np.ndarray
    """Mean profiles under the source condition."""
    change: np.ndarray
    """Measured change."""
    network: np.ndarray
    """Change that a network predicts which was trained without the label's treated cells."""
    linear: np.ndarray
    """The same from :class:`LinearResponse`."""
    shift: np.ndarray
    """Mean change of the labels that were not left out."""

    def weighted(self, weights: Weights) -> np.ndarray:
        """Add up the predictions, ``n_labels x n_genes``."""
        return sum(weight * getattr(self, name) for name, weight in weights._asdict().items())


def fit_weights(left_out: LeftOut, counts_per_cell: float | None, prior: Weights) -> Weights:
    r"""Weights with which left-out labels are predicted best.

    Non-negative least squares over labels and genes,

    .. math::

        \min_{w \ge 0} \sum_s \frac{\lVert y_s - X_s w \rVert^2}{\sigma_s^2}
        + \frac{n}{K} \sum_s \frac{\lVert X_s (w - w_0) \rVert^2}{\sigma_s^2}

    with :math:`y_s` the measured change of label :math:`s` of :math:`K`, :math:`X_s` the predicted ones,
    on the scale of log-normalised values, and :math:`\sigma_s` the label's own error, without which the
    labels that change most would decide alone. The second term is :math:`n` labels more that the prior
    weights :math:`w_0` would predict without error. Of the numbers from 1 to infinity, which keeps the
    prior, the one is taken with which labels are predicted best by weights of the others; with fewer than
    three labels, 1.

    Parameters
    ----------
    left_out
        Labels that were left out, on the scale of :func:`log_share` or of values.
    counts_per_cell
        Library size to which log-normalised values are scaled; ``None`` if profiles are values.
    prior
        Weights to shrink to.

    References
    ----------
    Breiman, *Machine Learning* 24, 49 (1996): stacked regressions, by non-negative least squares on
    cross-validated predictions; Aitken, *Proc. R. Soc. Edinb.* 55, 42 (1936): weighted least squares.
    """
    return _weights(_Products.of(left_out, counts_per_cell), np.array(prior))


def predicted_by_others(
    left_out: LeftOut, counts_per_cell: float | None, prior: Weights
) -> np.ndarray:
    """Predict each label with the weights of the others, ``n_labels x n_genes``.

    Parameters
    ----------
    left_out, counts_per_cell, prior
        See :func:`fit_weights`: the labels, their scale, and the weights to shrink to.
    """
    products = _Products.of(left_out, counts_per_cell)
    predicted = []
    for label in range(len(left_out.before)):
        others = products.without(label)
        predicted.append(left_out.weighted(_weights(others, np.array(prior)))[label])
    return np.array(predicted)


class _Products(NamedTuple):
    """Sums over genes of products of each label's predicted and measured changes."""

    xx: np.ndarray
    """``n_labels x n_predictions x n_predictions``."""
    xy: np.ndarray
    """``n_labels x n_predictions``."""
    yy: np.ndarray
    """``n_labels``."""

    @classmethod
    def of(cls, left_out: LeftOut, counts_per_cell: float | None) -> _Products:
        slope = _slope(left_out, counts_per_cell)
        x = np.stack([slope * getattr(left_out, name) for name in Weights._fields], axis=1)
        y = (slope * left_out.change)[..., None]
        return cls(x @ x.swapaxes(1, 2), (x @ y)[..., 0], (y**2).sum((1, 2)))

    def without(self, label: int) -> _Products:
        return _Products(*(np.delete(values, label, axis=0) for values in self))

    def errors(self, weights: np.ndarray) -> np.ndarray:
        """Sum of squared errors of each label."""
        squares = self.yy - 2 * self.xy @ weights + weights @ self.xx @ weights
        # Differences of large numbers are not exact.
        return squares.clip(min=1e-12 * self.yy + 1e-24)


def _weights(products: _Products, prior: np.ndarray) -> Weights:
    return Weights(*_fitted(products, prior, _best_shrinkage(products, prior)).tolist())


def _best_shrinkage(products: _Products, prior: np.ndarray) -> float:
    """Number of labels that the prior counts as: that with which left-out labels are predicted best."""
    n_labels = len(products.yy)
    if n_labels < MIN_LABELS:
        return _SHRINKAGES[0]
    errors = [
        [
            np.log(products.errors(_fitted(products.without(label), prior, shrinkage))[label])
            for label in range(n_labels)
        ]
        for shrinkage in _SHRINKAGES
    ]
    return _SHRINKAGES[np.mean(errors, axis=1).argmin()]


def _fitted(products: _Products, prior: np.ndarray, shrinkage: float) -> np.ndarray:
    """Weights of least error, see :func:`fit_weights`."""
    weights = prior
    if np.isinf(shrinkage) or len(products.yy) == 0:
        return weights
    share = shrinkage / len(products.yy)
    for _ in range(_N_REWEIGHTINGS):
        of_label = 1 / products.errors(weights)
        xx, xy = of_label @ products.xx.reshape(len(of_label), -1), of_label @ products.xy
        xx = xx.reshape(len(prior), -1)
        # The same problem with as many equations as weights.
        values, axes = np.linalg.eigh((1 + share) * xx)
        sizes = np.sqrt(values.clip(min=1e-12 * values.max() + 1e-24))
        weights = nnls(sizes[:, None] * axes.T, (xy + share * xx @ prior) @ axes / sizes)[0]
    return weights


def linear_left_out(before: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Predict each label's change by the linear response of the others, ``n_labels x n_genes``.

    Parameters
    ----------
    before, change
        See :class:`LinearResponse`: profiles of the labels and their change, ``n_labels x n_genes``.
    """
    predicted = []
    for label in range(len(before)):
        others = np.arange(len(before)) != label
        linear = LinearResponse(before[others], change[others])
        predicted.append(linear.change(before[[label]])[0])
    return np.array(predicted)


def log_normalized_after(
    before: np.ndarray, change: np.ndarray, counts_per_cell: float | None
) -> np.ndarray:
    """Mean expression after a change, as ``log(1 + counts per counts_per_cell)`` or as values.

    Parameters
    ----------
    before, change
        Profiles and changes on the scale of :func:`log_share` or of values, ``... x n_genes``.
    counts_per_cell
        See :func:`fit_weights`: the library size to scale to.
    """
    if counts_per_cell is None:
        return before + change
    return np.log1p(counts_per_cell * share_of_log(before + change))


class ErrorsOfLabels:
    """Errors of left-out labels, from which those of another label are expected.

    A gene's squared error is a non-negative combination of its squared predicted change, the
    variance of its change between labels, and the noise of counting. It is fitted by least squares of
    relative deviations, lest the few genes with large errors decide alone.

    Parameters
    ----------
    before, change
        See :class:`LeftOut`: profiles and measured changes of the labels, ``n_labels x n_genes``
        with at least three labels.
    predicted
        Change of each, predicted without it, ``n_labels x n_genes``.
    n_cells
        Number of each label's cells under both conditions, ``n_labels x 2``.
    counts_per_cell
        See :func:`fit_weights`: the library size to scale to.
    """

    def __init__(
        self,
        before: np.ndarray,
        change: np.ndarray,
        predicted: np.ndarray,
        n_cells: np.ndarray,
        counts_per_cell: float | None,
    ):
        self._before, self._change, self._counts_per_cell = before, change, counts_per_cell
        after, expected = self._values(before, change), self._values(before, predicted)
        errors = after - expected
        others = [np.delete(change, label, axis=0) for label in range(len(change))]
        noise = (1 / n_cells).sum(1)
        causes = np.stack(list(map(self._causes, before, predicted, others, noise)))
        self._coefficients = _fitted_variance(causes.reshape(-1, 3), errors.ravel() ** 2)
        variance = self._variance(causes)
        self._ratios = np.sqrt(np.square(errors).mean(1) / variance.mean(1))
        sd, self._units = np.sqrt(variance).ravel(), np.abs(errors / np.sqrt(variance)).ravel()
        n_bins = int(np.clip(len(sd) // _GENES_PER_BIN, 1, _MAX_BINS))
        # Each of them the lowest of its bin, so that none is empty where many are equal.
        edges = np.unique(np.quantile(sd, np.arange(1, n_bins) / n_bins, method="higher"))
        self._edges = edges[edges > sd.min()]
        self._bins = np.digitize(sd, self._edges)
        measured = np.abs(after - self._values(before, 0.0))
        n_top = min(_N_TOP, measured.shape[1] // 3)
        self._is_top = (stats.rankdata(-measured, "ordinal", axis=1) <= n_top).ravel()

    def expected_rmse(
        self, before: np.ndarray, predicted: np.ndarray, n_cells: int
    ) -> tuple[float, float, float]:
        """Error to expect of a label's prediction: root mean square over genes, and a range.

        Parameters
        ----------
        before, predicted
            The label's profile and predicted change, ``n_genes``.
        n_cells
            Number of cells that are predicted, and that it would be compared with.

        Returns
        -------
        The expectation, and the range in which it lies with a probability of 0.8.
        """
        variance = self._variance(self._causes(before, predicted, self._change, 2 / n_cells))
        ratios, n = np.log(self._ratios.clip(min=1e-12)), len(self._ratios)
        expected = np.log(variance.mean()) / 2 + ratios.mean()
        half = stats.t.ppf(0.9, n - 1) * ratios.std(ddof=1) * np.sqrt(1 + 1 / n)
        expected, low, high = np.exp([expected, expected - half, expected + half]).tolist()
        return expected, low, high

    def remoteness(self, before: np.ndarray) -> float:
        """Distance of a profile (``n_genes``) from the nearest label's.

        Its unit is the largest distance of a label from the one that is nearest to it.
        """
        profiles = self._values(self._before, 0.0)
        distances = squareform(pdist(profiles))
        np.fill_diagonal(distances, np.inf)
        own = np.linalg.norm(profiles - self._values(before, 0.0), axis=1).min()
        return float(own / max(distances.min(1).max(), 1e-12))

    def interval(
        self, before: np.ndarray, predicted: np.ndarray, n_cells: int, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Interval for the mean of each gene of a label.

        Its width is a quantile of the errors of genes with a similar expected error, in units of the
        latter; or of the genes among them that changed most, if it is larger. These have errors in common
        in a label, and labels are few: their quantile is widened as Student's t is wider than the normal
        distribution.

        Parameters
        ----------
        before, predicted, n_cells
            See :meth:`expected_rmse`: the label's profile and predicted change, and its cells.
        level
            Share of the intervals that are to hold the mean.

        Returns
        -------
        Lower and upper ends, ``n_genes`` each: shares of the counts, or values.

        References
        ----------
        Vovk, Lindsay, Nouretdinov & Gammerman, *Mondrian confidence machine* (2003).
        """
        sd = np.sqrt(self._variance(self._causes(before, predicted, self._change, 2 / n_cells)))
        quantiles = [self._quantile(number, level) for number in range(len(self._edges) + 1)]
        half = sd * np.array(quantiles)[np.digitize(sd, self._edges)]
        center = self._values(before, predicted)
        if self._counts_per_cell is None:
            return center - half, center + half
        ends = (np.expm1((center + side * half).clip(min=0)) for side in (-1, 1))
        low, high = (end / self._counts_per_cell for end in ends)
        return low, high

    def _quantile(self, number: int, level: float) -> float:
        """Quantile of the errors in a bin."""
        is_in_bin = self._bins == number
        is_top = is_in_bin & self._is_top
        quantile = float(np.quantile(self._units[is_in_bin], level))
        if is_top.sum() < _FEWEST_FOR_QUANTILE:
            return quantile
        upper = (1 + level) / 2
        few_labels = stats.t.ppf(upper, len(self._change)) / stats.norm.ppf(upper)
        return max(quantile, few_labels * float(np.quantile(self._units[is_top], level)))

    def _values(self, before: np.ndarray, change: np.ndarray | float) -> np.ndarray:
        return log_normalized_after(before, np.asarray(change), self._counts_per_cell)

    def _causes(
        self, before: np.ndarray, predicted: np.ndarray, others: np.ndarray, per_cell: float
    ) -> np.ndarray:
        """What errors grow with, ``n_genes x 3``; ``per_cell`` is the inverse of numbers of cells."""
        own, after = self._values(before, 0.0), self._values(before, predicted)
        spread = (self._values(before, others) - own).var(0)
        noise = np.full_like(own, per_cell)
        if self._counts_per_cell is not None:
            # Of log(1 + counts) with the variance of a Poisson distribution.
            highest = np.maximum(own, after)
            noise *= np.expm1(highest) * np.exp(-2 * highest)
        return np.stack([(after - own) ** 2, spread, noise], axis=-1)

    def _variance(self, causes: np.ndarray) -> np.ndarray:
        return causes @ self._coefficients + 1e-12


def _fitted_variance(causes: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Coefficients of the causes (``n x n_causes``) of squared errors (``n``)."""
    units = causes.mean(0) + 1e-12
    causes, expected = causes / units, np.ones_like(squares)
    for _ in range(_N_REWEIGHTINGS):
        coefficients = nnls(causes / expected[:, None], squares / expected)[0]
        expected = causes @ coefficients
        # Errors of genes without counts are 0, and so are their causes.
        lowest = np.quantile(expected[expected > 0], _LOWEST_QUANTILE) if expected.any() else 1.0
        expected = expected.clip(min=lowest)
    return coefficients / units


def _slope(left_out: LeftOut, counts_per_cell: float | None) -> np.ndarray:
    """Derivative of log-normalised values by :func:`log_share`, halfway through the change."""
    if counts_per_cell is None:
        return np.ones_like(left_out.before)
    share = share_of_log(left_out.before + left_out.change / 2)
    return counts_per_cell * (share + 1 / TARGET_SUM) / (1 + counts_per_cell * share)
