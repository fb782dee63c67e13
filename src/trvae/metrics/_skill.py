"""Measures on a scale from the best baseline to a replicate of the experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from trvae._utils._arguments import join_names
from trvae.metrics._baselines import BASELINES, REPLICATE

if TYPE_CHECKING:
    from collections.abc import Iterable

MEASURES = {
    "r2_mean": 1.0,
    "r2_variance": 1.0,
    "r2_mean_top": 1.0,
    "r2_variance_top": 1.0,
    "change": 1.0,
    "change_top": 1.0,
    "change_specific": 1.0,
    "discrimination": 1.0,
    "rmse_specific": 0.0,
    "rmse": 0.0,
    "rmse_weighted": 0.0,
    "rmse_log_fold_change": 0.0,
    "wasserstein": 0.0,
    "energy_distance": 0.0,
    "energy_distance_genes": 0.0,
    "energy_distance_top": 0.0,
    "mmd": 0.0,
    "mmd_genes": 0.0,
    "mmd_top": 0.0,
    "coverage_top": 0.9,
    "de_overlap": 1.0,
    "de_precision": 1.0,
    "de_recall": 1.0,
    "de_direction": 1.0,
    "de_rank_correlation": 1.0,
}
"""Columns of :func:`transfer_metrics`, and the value of each that is best."""

SPLIT = ["label", "source_condition", "target_condition"]
"""Columns of :func:`trvae.evaluate` that name what was held out."""


def check_measures(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise a ``ValueError`` unless a table has these measures."""
    if missing := [name for name in names if name not in table]:
        raise ValueError(
            f"table has no {join_names(missing)}. It must be of transfer_metrics or evaluate."
        )


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far each measure in a table is from its best value."""
    check_measures(table, MEASURES)
    return (table[list(MEASURES)] - pd.Series(MEASURES)).abs()


def skill_scores(table: pd.DataFrame) -> pd.DataFrame:
    r"""Put every measure on a scale on which 0 is the best baseline, and 1 a replicate.

    .. math:: \frac{\text{value} - \text{baseline}}{\text{replicate} - \text{baseline}}

    The best baseline is chosen for each measure, label and target condition. Coverage counts by its
    distance from the nominal 0.9.

    Parameters
    ----------
    table
        Result of :func:`transfer_metrics` or :func:`trvae.evaluate`.

    Returns
    -------
    The table with scores in place of the measures, and without standard errors. Negative: worse
    than a baseline that needs no model. NaN: not defined, or the best baseline is as good as a
    replicate, so that there is nothing to be gained.

    Raises
    ------
    ValueError
        If the table lacks a measure.

    References
    ----------
    Murphy, *Monthly Weather Review* 116, 2417 (1988), equation 4: the skill score.
    """
    method = table["method"] if "method" in table else pd.Series(table.index, table.index)
    split = [table[name] for name in SPLIT if name in table] or [pd.Series(0, table.index)]
    error = errors(table)

    def of_split(rows: pd.Series) -> pd.DataFrame:
        # A condition that is not given stays a name.
        groups = error.where(rows, float("nan")).groupby(split, observed=True, dropna=False)
        return groups.transform("min")

    best, replicate = of_split(method.isin(BASELINES)), of_split(method == REPLICATE)
    to_gain = best - replicate
    scores = (best - error) / to_gain.where(to_gain > 0)
    return table.drop(columns=table.filter(regex="_se$").columns).assign(**scores)
