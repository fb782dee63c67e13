"""Where a plot is drawn, and what becomes of it then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

# In points. What is smaller than 7 can't be read in print.
SMALL_FONT = 8
_PRINT_DPI = 300


class Output(NamedTuple):
    """The arguments that all plots have in common."""

    ax: Axes | Sequence[Axes] | None
    show: bool | None
    save: str | Path | None
    return_fig: bool

    def axes(
        self, n_panels: int = 1, *, panel_size: tuple[float, float], n_columns: int = 1
    ) -> list[Axes]:
        """Return the axes given, or those of a new figure.

        Parameters
        ----------
        n_panels
            How many are needed.
        panel_size
            Width and height of each, in inches.
        n_columns
            Panels side by side.
        """
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
            needed = "one Axes" if n_panels == 1 else f"a list of {n_panels} Axes, one a panel"
            raise ValueError(f"ax={self.ax!r} is not {needed}.")
        return list(given)

    def finish(self, axes: list[Axes]) -> Any:
        """Save and show the figure as asked for, and return what is to be returned."""
        figure = whole_figure(axes[0])
        if self.save is not None:
            figure.savefig(self.save, dpi=_PRINT_DPI, bbox_inches="tight")
        if self.return_fig:
            return figure
        if self.show or (self.show is None and self.ax is None and self.save is None):
            plt.show()
            return None
        return axes[0] if len(axes) == 1 else axes


def whole_figure(ax: Axes) -> Figure:
    """Return the figure of the axes, also if they are in a subfigure."""
    return ax.figure.canvas.figure


def legend_outside(ax: Axes, handles: list, **kwargs: Any) -> None:
    """Draw a legend to the right of the axes, from the top down."""
    legend = ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.02),
        frameon=False,
        fontsize=SMALL_FONT,
        title_fontsize=SMALL_FONT,
        alignment="left",
        **kwargs,
    )
    # Nothing is under it that it would have to be seen through.
    legend.set_zorder(2)
