"""Where a plot is drawn, in which colours, and what happens to it afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# In points. Anything below 7 is illegible in print.
SMALL_FONT = 8
# Distinguishable with any colour vision: Okabe & Ito, "Color Universal Design" (2008).
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
_PRINT_DPI = 300


class Output(NamedTuple):
    """The arguments that all plots share."""

    ax: Axes | Sequence[Axes] | None
    show: bool | None
    save: str | Path | None
    return_fig: bool

    def axes(
        self, n_panels: int = 1, *, panel_size: tuple[float, float], n_columns: int = 1
    ) -> list[Axes]:
        """Return the given axes, or those of a new figure with panels of this size in inches."""
        if self.ax is None:
            n_columns = min(n_columns, n_panels)
            n_rows = -(-n_panels // n_columns)
            size = (panel_size[0] * n_columns, panel_size[1] * n_rows)
            figure, grid = plt.subplots(
                n_rows, n_columns, figsize=size, layout="constrained", squeeze=False
            )
            for unused in grid.flat[n_panels:]:
                figure.delaxes(unused)
            return list(grid.flat[:n_panels])
        given = np.ravel(np.asarray(self.ax, dtype=object))
        if len(given) != n_panels or not all(isinstance(ax, Axes) for ax in given):
            needed = "one Axes" if n_panels == 1 else f"a list of {n_panels} Axes, one per panel"
            raise ValueError(f"ax={self.ax!r} is not {needed}.")
        return list(given)

    def finish(self, axes: list[Axes]) -> Any:
        """Save and show the figure as requested, and return what the caller asked for."""
        # The whole figure even if the axes are in a subfigure.
        figure = axes[0].figure.canvas.figure
        if self.save is not None:
            figure.savefig(self.save, dpi=_PRINT_DPI, bbox_inches="tight")
        if self.return_fig:
            return figure
        if self.show or (self.show is None and self.ax is None and self.save is None):
            plt.show()
            return None
        return axes[0] if len(axes) == 1 else axes
