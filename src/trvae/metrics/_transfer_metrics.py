"""A prediction beside what costs nothing and beside what cannot be beaten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from trvae._utils._arguments import check_positive_integer, join_names
from trvae._utils._matrices import dense
from trvae.data._checks import check_obs_column, get_matrix
from trvae.metrics._baselines import (
    Centroids,
    cell_weighted_shift,
    centroids,
    linear_shift,
    mean_shift,
    nearest_shift,
)
from trvae.metrics._differential_expression import (
    de_direction,
    de_overlap,
    de_rank_correlation,
    rank_by_clarity,
    welch_t,
)
from trvae.metrics._measures import (
    coverage,
    energy_distance,
    maximum_mean_discrepancy,
    pearson_of_change,
    r2_of_means,
    r2_of_variances,
    rmse_of_means,
)
from trvae.metrics._normalize import check_same_scale, log_normalized, median_library_size

if TYPE_CHECKING:
    from anndata import AnnData

BASELINES = (
    "no change", "mean shift", "cell-weighted shift", "nearest shift", "linear shift", "ceiling",
)  # fmt: skip
"""Rows of a comparison beside the prediction, if there is a reference."""

_N_SPLITS = 5
_MAX_CELLS_FOR_DISTANCE = 2_000


def transfer_metrics(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    *,
    reference: AnnData | None = None,
    condition_key: str | None = None,
    labels_key: str | None = None,
    source_condition: Any = None,
    target_condition: Any = None,
    layer: str | None = None,
    library_key: str | None = None,
    normalize: bool = True,
    n_top_genes: int = 100,
    n_pcs: int = 30,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare predicted with observed cells, beside baselines and a ceiling.

    Parameters
    ----------
    predicted
        Cells as predicted under the target condition, as :meth:`trvae.TRVAE.transfer` returns
        them: counts or log-normalised values. Log-normalised values can be compared with counts
        if ``predicted.uns["log1p"]["target_sum"]`` tells which library size they are scaled to.
    observed
        Cells measured under the target condition, never seen in training.
    control
        The cells that the prediction was made from.
    reference
        The cells that were trained on. With it (and the next four arguments) come the baselines
        that learn from other labels.
    condition_key, labels_key
        Columns of ``reference.obs``; the label is looked up in ``control.obs``.
    source_condition, target_condition
        Between which conditions the cells were transferred.
    layer
        Layer to compare, by default ``X``.
    library_key
        Column of ``obs`` with each cell's library size over all genes that were measured; by
        default counts are normalised by their sum over the genes at hand.
    normalize
        ``False`` compares all values as they are, as is right for pixels.
    n_top_genes
        Number of top genes: those that differ most clearly between ``control`` and ``observed``
        (Welch's t). They are chosen with the held-out cells and serve to measure only.
    n_pcs
        Principal components, of ``control`` and ``observed`` together, in which the energy
        distance is taken.
    seed
        Seed of the random halves and of the subsets of 2,000 cells that the energy distance is
        taken between where there are more.

    Returns
    -------
    One row a method:

    * ``prediction``
    * ``no change``: the control cells
    * ``mean shift``: control plus the mean change over the other labels
    * ``cell-weighted shift``: the same, each label counting as often as it has cells
    * ``nearest shift``: control plus the change of the label nearest to the control cells, which
      ``DataFrame.attrs["nearest"]`` names
    * ``linear shift``: control plus the change that a ridge regression over the other labels
      predicts from the control mean
    * ``ceiling``: one half of the observed cells against the other, averaged over five random
      splits

    One column a measure:

    * ``r2_mean``, ``r2_variance``: squared Pearson correlation of per-gene means, variances
    * ``r2_mean_top``, ``r2_variance_top``: the same over the top genes
    * ``change``, ``change_top``: Pearson correlation of the change from control
    * ``rmse``: of the per-gene means; ``rmse_weighted``: with the squared absolute t of the
      observed change as weights (Mejia et al., 2025); ``rmse_specific``: over as many genes as
      there are top genes, those of which the label's change differs most from the other labels'
      mean change
    * ``energy_distance``, ``mmd``: between the groups of cells, in principal components
    * ``coverage_top``: share of the observed values of the top genes within the central 90 % of
      the predicted ones; 0.9 if the prediction is calibrated
    * ``de_overlap``, ``de_direction``, ``de_rank_correlation``: of the differentially expressed
      genes, see :mod:`trvae.metrics`

    Counts are compared as ``log(1 + count / library size * median library size of control)``.

    Raises
    ------
    ValueError
        If genes differ, a group has fewer than two cells, counts would be compared with values
        that are none, a key is missing, ``library_key`` is given without normalisation, or no
        other label was measured under both conditions.

    References
    ----------
    Ahlmann-Eltze, Huber & Anders, *Nature Methods* 22, 1657 (2025): why a prediction is to be
    compared with the mean and with linear models; Mejia et al., *arXiv* 2506.22641 (2025): errors
    weighted by significance. Those of the other measures are in :mod:`trvae.metrics`.
    """
    comparison = TransferComparison(
        observed,
        control,
        reference=reference,
        condition_key=condition_key,
        labels_key=labels_key,
        source_condition=source_condition,
        target_condition=target_condition,
        layer=layer,
        library_key=library_key,
        normalize=normalize,
        n_top_genes=n_top_genes,
        n_pcs=n_pcs,
        seed=seed,
    )
    return comparison.table(predicted)


class TransferComparison:
    """The baselines and the ceiling of held-out cells, to compare any number of predictions with.

    Parameters
    ----------
    observed, control
        As in :func:`transfer_metrics`.
    **kwargs
        As in :func:`transfer_metrics`.

    Raises
    ------
    ValueError
        As :func:`transfer_metrics`.
    """

    def __init__(
        self,
        observed: AnnData,
        control: AnnData,
        *,
        reference: AnnData | None,
        condition_key: str | None,
        labels_key: str | None,
        source_condition: Any,
        target_condition: Any,
        layer: str | None,
        library_key: str | None,
        normalize: bool = True,
        n_top_genes: int = 100,
        n_pcs: int = 30,
        seed: int = 0,
    ):
        check_positive_integer("n_top_genes", n_top_genes)
        check_positive_integer("n_pcs", n_pcs)
        groups = {"observed": observed, "control": control}
        with_reference = groups if reference is None else groups | {"reference": reference}
        if library_key is not None and not normalize:
            raise ValueError(f"library_key={library_key!r} is of no use with normalize=False.")
        check_comparable(with_reference, layer, normalize)
        self._groups = groups
        self._normalize = normalize
        self._scale: dict[str, Any] = {"layer": layer, "library_key": library_key}
        if normalize:
            self._target_sum = median_library_size(control, **self._scale)
        before, self._after = self._values(control), self._values(observed)
        baselines = {"no change": before}
        others = None
        self.nearest: str | None = None
        if reference is not None:
            if (
                condition_key is None
                or labels_key is None
                or source_condition is None
                or target_condition is None
            ):
                raise ValueError(
                    "With a reference, condition_key, labels_key, source_condition and "
                    "target_condition are needed as well."
                )
            own_labels = set(check_obs_column(control, "labels_key", labels_key).unique())
            others = _other_labels(
                reference,
                self._values(reference),
                condition_key,
                source_condition,
                target_condition,
                labels_key,
                own_labels,
            )
            baselines["mean shift"] = mean_shift(before, others)
            baselines["cell-weighted shift"] = cell_weighted_shift(before, others)
            baselines["nearest shift"], self.nearest = nearest_shift(before, others)
            baselines["linear shift"] = linear_shift(before, others)

        self._measures = _Measures(before, self._after, others, n_top_genes, n_pcs, seed)
        self.rows = {
            name: self._measures(values, self._after) for name, values in baselines.items()
        }
        """Measures of the baselines and the ceiling."""
        self.rows["ceiling"] = self._measures.ceiling(self._after)

    def table(self, predicted: AnnData) -> pd.DataFrame:
        """Return what :func:`transfer_metrics` returns."""
        groups = {"predicted": predicted, **self._groups}
        check_comparable(groups, self._scale["layer"], self._normalize)
        row = self._measures(self._values(predicted), self._after)
        rows = {"prediction": row, **self.rows}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
        table.attrs["nearest"] = self.nearest
        return table

    def _values(self, adata: AnnData) -> np.ndarray:
        same_genes = adata[:, self._groups["observed"].var_names]
        if not self._normalize:
            return dense(get_matrix(same_genes, self._scale["layer"])).astype(float)
        return log_normalized(same_genes, target_sum=self._target_sum, **self._scale)


class _Measures:
    """All measures, with the genes and the principal components chosen once."""

    def __init__(self, before, after, others: Centroids | None, n_top_genes, n_pcs, seed):
        self.before = before
        self.n_top_genes = n_top_genes
        clarity = np.abs(welch_t(before, after))
        self.top = rank_by_clarity(clarity)[:n_top_genes]
        self.weights = (clarity / max(clarity.max(), 1e-12)) ** 2 if clarity.any() else None
        self.specific = None
        if others is not None:
            change = after.mean(0) - before.mean(0)
            self.specific = rank_by_clarity(change - others.change.mean(0))[:n_top_genes]
        together = np.concatenate([before, after])
        n_pcs = min(n_pcs, *together.shape)
        self.pca = PCA(n_pcs, svd_solver="covariance_eigh", random_state=seed).fit(together)
        self.seed = seed

    def __call__(self, predicted: np.ndarray, observed: np.ndarray) -> dict[str, float]:
        top, specific = (slice(None), self.top), (slice(None), self.specific)
        projected = self._project(predicted), self._project(observed)
        t = welch_t(self.before, predicted), welch_t(self.before, observed)
        return {
            "r2_mean": r2_of_means(predicted, observed),
            "r2_variance": r2_of_variances(predicted, observed),
            "r2_mean_top": r2_of_means(predicted[top], observed[top]),
            "r2_variance_top": r2_of_variances(predicted[top], observed[top]),
            "change": pearson_of_change(predicted, observed, self.before),
            "change_top": pearson_of_change(predicted[top], observed[top], self.before[top]),
            "rmse": rmse_of_means(predicted, observed),
            "rmse_weighted": rmse_of_means(predicted, observed, self.weights),
            "rmse_specific": (
                float("nan")
                if self.specific is None
                else rmse_of_means(predicted[specific], observed[specific])
            ),
            "energy_distance": energy_distance(*projected),
            "mmd": maximum_mean_discrepancy(*projected),
            "coverage_top": coverage(predicted[top], observed[top]),
            "de_overlap": de_overlap(*t, self.n_top_genes),
            "de_direction": de_direction(*t, self.n_top_genes),
            "de_rank_correlation": de_rank_correlation(*t),
        }

    def ceiling(self, observed: np.ndarray) -> dict[str, float]:
        splits = []
        rng = np.random.default_rng(self.seed)
        for _ in range(_N_SPLITS):
            one, other = np.array_split(rng.permutation(len(observed)), 2)
            splits.append(self(observed[one], observed[other]))
        return pd.DataFrame(splits).mean().to_dict()

    def _project(self, values: np.ndarray) -> np.ndarray:
        if len(values) > _MAX_CELLS_FOR_DISTANCE:
            rng = np.random.default_rng(self.seed)
            values = values[rng.permutation(len(values))[:_MAX_CELLS_FOR_DISTANCE]]
        return self.pca.transform(values)


def check_comparable(
    groups: dict[str, AnnData], layer: str | None, normalize: bool = True
) -> None:
    """Raise a ``ValueError`` unless the groups have cells, genes and scale to be compared.

    Parameters
    ----------
    groups
        The groups by name, one of which is ``observed``, whose genes are compared.
    layer
        Layer to compare, by default ``X``.
    normalize
        Whether counts are normalised; else values are compared whatever they are.
    """
    genes = groups["observed"].var_names
    for name, adata in groups.items():
        if adata.n_obs < 2:
            raise ValueError(f"{name} has {adata.n_obs} cells; 2 or more are needed.")
        missing = genes.difference(adata.var_names)
        if len(missing):
            raise ValueError(f"{name} lacks genes that observed has: {join_names(missing)}.")
    if normalize:
        check_same_scale(groups, layer)


def _other_labels(
    reference, values, condition_key, source, target, labels_key, own_labels
) -> Centroids:
    condition = check_obs_column(reference, "condition_key", condition_key).to_numpy()
    label = check_obs_column(reference, "labels_key", labels_key).to_numpy().astype(object)
    is_other = ~np.isin(label, list(own_labels))
    found = centroids(
        values[is_other],
        label[is_other].astype(str),
        condition[is_other] == source,
        condition[is_other] == target,
    )
    if not found.names:
        raise ValueError(
            f"reference has no other label with cells of both {source!r} and {target!r} in "
            f"obs[{condition_key!r}], which the baselines would learn from."
        )
    return found
