"""Figures of the reports, which are written to ``docs/_static``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FOLDER = Path("docs/_static")
OURS, OTHERS = "tab:blue", "tab:gray"


def draw_methods(table: pd.DataFrame, measures: dict[str, str], limits: pd.Series) -> Path:
    """A bar for each method and measure, those of TRVAE in colour; a line for real cells.

    Parameters
    ----------
    table
        Methods by measures.
    measures
        Measures to draw, with their headings.
    limits
        Where the lines are.
    """
    figure, axes = plt.subplots(
        1, len(measures), figsize=(9, 3.2), sharey=True, layout="constrained"
    )
    colors = [OURS if name.startswith("TRVAE") else OTHERS for name in table.index]
    for axis, (measure, heading) in zip(axes, measures.items(), strict=True):
        axis.barh(range(len(table)), table[measure], color=colors, height=0.7)
        axis.axvline(limits[measure], color="black", linestyle="--", linewidth=1)
        axis.set_xlabel(heading)
    axes[0].set_yticks(range(len(table)), table.index)
    axes[0].invert_yaxis()
    return saved(figure, "scperturbench")


def draw_errors(errors: pd.DataFrame, titles: dict[str, str]) -> Path:
    """Expected errors with their range, and true ones, a row for each held-out label.

    Parameters
    ----------
    errors
        ``error``, ``error_low``, ``error_high`` and ``true``, by data set and label.
    titles
        Names of the data sets to draw, each in a panel.
    """
    parts = [errors.loc[name].sort_values("error") for name in titles]
    figure, axes = plt.subplots(1, len(parts), figsize=(9, 3.2), layout="constrained")
    for axis, part, title in zip(axes, parts, titles.values(), strict=True):
        rows = range(len(part))
        axis.hlines(
            rows, part["error_low"], part["error_high"], color=OURS, linewidth=5, alpha=0.35
        )
        axis.scatter(part["error"], rows, c=OURS, s=30, marker="D", label="expected, with range")
        axis.scatter(part["true"], rows, c="black", s=36, marker="x", label="true", zorder=3)
        axis.set_yticks(rows, part.index)
        axis.set_title(title.replace(" under ", "\nunder "), fontsize="small")
        axis.set_xlim(0, None)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel("Root mean squared error of the predicted means", fontsize="medium")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False
    )
    return saved(figure, "calibration")


def saved(figure: Figure, name: str) -> Path:
    """Write a figure, and return where it is."""
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
