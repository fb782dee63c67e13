"""The few measures that answer most questions, to be read at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trvae.metrics._skill import MEASURES, SPLIT, check_measures

if TYPE_CHECKING:
    import pandas as pd

# Short enough for pandas to print the table whole on 80 columns.
HEADINGS = {
    "r2_mean": "R² mean",
    "r2_variance": "R² variance",
    "change": "r change",
    "rmse": "RMSE",
    "energy_distance": "energy",
}


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Select the main measures, rounded, with an arrow towards better values.

    Parameters
    ----------
    table
        See :func:`skill_scores`: measures of predictions and baselines.

    Returns
    -------
    The same rows, with the squared correlation of the genes' means and of their variances, the
    correlation of their changes, the root mean squared error of the means, and the energy distance. The
    columns of :func:`trvae.evaluate` that name a row are in the index, unless all rows have the same name
    there.

    Raises
    ------
    ValueError
        If the table lacks one of them.
    """
    check_measures(table, HEADINGS)
    arrows = {name: "↑" if MEASURES[name] == 1 else "↓" for name in HEADINGS}
    headings = {name: f"{heading} {arrows[name]}" for name, heading in HEADINGS.items()}
    # pandas prints an index whole, while it leaves out columns.
    names = [*SPLIT, "method", "seed"]
    # Baselines have no seed, but a condition that is not given stays a name.
    names = [
        name for name in names if name in table and table[name].nunique(dropna=name == "seed") > 1
    ]
    named = table.set_index(names) if names else table
    return named[list(headings)].astype(float).round(3).rename(columns=headings)
