"""Whether a method is ahead of the baselines, or of another method, label by label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from trvae._utils._arguments import STRICT_SHARE, check_arguments, join_names
from trvae.metrics._baselines import BASELINES
from trvae.metrics._skill import MEASURES, SPLIT, errors


def paired_differences(
    table: pd.DataFrame,
    method: str = "trVAE",
    other: str | None = None,
    *,
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare two methods of an evaluation on the same held-out cells.

    The two are compared by how far a measure is from its best value (see
    :data:`MEASURES`), averaged over seeds. The held-out labels and target conditions are
    the sample of which the interval tells.

    Parameters
    ----------
    table
        Result of :func:`trvae.evaluate`.
    method
        Name of the method.
    other
        Name of the method or baseline to compare with. By default, the best baseline for each
        measure, label and target condition, which no single baseline need be.
    level
        Level of the intervals.

    Returns
    -------
    One row per measure, with the columns

    * ``n``: number of pairs of label and conditions for which both have the measure;
    * ``n_missing``: number of pairs for which the other has the measure and the method lacks it, in
      any seed or altogether, as ``de_precision`` where no gene is predicted to change;
    * ``advantage``: mean of the other's error minus the method's; positive if the method is better;
    * ``low``, ``high``: Student's interval of the advantage, NaN for a single pair;
    * ``n_better``: number of pairs for which the method is better;
    * ``sd_of_seeds``: standard deviation of the method's measure over seeds, averaged over pairs;
    * ``verdict``: ``"ahead"`` or ``"behind"`` if the interval excludes 0, and otherwise
      ``"undecided"``; never ``"ahead"`` if a measure is missing.

    Raises
    ------
    ValueError
        If the table has no such method, or ``level`` is not between 0 and 1.

    References
    ----------
    Student, *Biometrika* 6, 1 (1908).
    """
    check_arguments(locals(), {"level": STRICT_SHARE})
    if "method" not in table:
        raise ValueError("table has no column 'method'. It must be of evaluate.")
    known = table["method"].unique()
    for name in (method, other):
        if name is not None and name not in known:
            raise ValueError(f"table has no method {name!r}, only {join_names(known)}.")
    pair = [name for name in SPLIT if name in table]
    keyed = pd.concat([table[[*pair, "method"]], errors(table)], axis=1)
    # A condition that is not given stays a name.
    named: dict[str, Any] = {"observed": True, "sort": False, "dropna": False}
    means = keyed.groupby([*pair, "method"], **named).mean()
    own = means.xs(method, level="method")
    if other is None:
        is_baseline = means.index.get_level_values("method").isin(BASELINES)
        others = means[is_baseline].groupby(pair, **named).min()
    else:
        others = means.xs(other, level="method")
    of_method = table[table["method"] == method].groupby(pair, **named)[list(MEASURES)]
    difference = others.reindex(own.index) - own
    n, mean = difference.count(), difference.mean()
    is_complete = of_method.count().eq(of_method.size(), axis=0)
    n_missing = (others.notna() & ~is_complete.reindex(others.index, fill_value=False)).sum()
    half = stats.t.ppf((1 + level) / 2, (n - 1).clip(lower=1)) * difference.std() / np.sqrt(n)
    result = pd.DataFrame(
        {
            "n": n,
            "n_missing": n_missing,
            "advantage": mean,
            "low": mean - half,
            "high": mean + half,
            "n_better": (difference > 0).sum(),
            "sd_of_seeds": of_method.std().mean(),
        }
    )
    result["verdict"] = np.select(
        [(result["low"] > 0) & (n_missing == 0), result["high"] < 0],
        ["ahead", "behind"],
        "undecided",
    )
    return result.rename_axis("measure")
