"""The response of each label: control, predicted and observed cells side by side."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.gridspec import GridSpec

from trvae._utils._arguments import check_arguments, choice, join_names
from trvae.data._checks import check_obs_column
from trvae.pl._output import Output
from trvae.pl._values import chosen_genes, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNIT = "log-normalised\nexpression"
# In inches: a letter of a tick label, its tick, and what scanpy needs for the legends.
_LETTER, _TICK, _LEGENDS = 0.065, 0.15, 2.2


def response_by_label(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    *,
    labels_key: str,
    labels: Sequence | None = None,
    genes: Sequence[str] | None = None,
    n_genes: int = 8,
    kind: Literal["dot", "violin"] = "dot",
    layer: str | None = None,
    library_key: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Expression of responding genes in control, predicted and observed cells of each label.

    Values are compared as in :func:`mean_scatter`: log-normalised to the median library size of
    the control cells.

    Parameters
    ----------
    predicted, observed, control
        The predicted cells, the measured cells, and the cells that the prediction started from. A
        label that was never measured under the target condition has no observed cells.
    labels_key
        Column of ``obs`` with the labels, such as cell types.
    labels
        Labels to draw, in this order. By default all labels of the predicted cells.
    genes
        Genes to draw, in this order. By default those that change most.
    n_genes
        Number of genes if ``genes`` is not given: those with the largest absolute change of the
        mean from control, averaged over labels. The change is the observed one or, for a label
        without observed cells, the predicted one.
    kind
        One of:

        * ``"dot"`` - dots whose colour is the mean and whose area is the percentage of cells
          above 0, drawn by :class:`scanpy.pl.DotPlot`
        * ``"violin"`` - distributions over cells, coloured by their median, with a line at their
          mean, drawn by :class:`scanpy.pl.StackedViolin`
    layer, library_key
        See :func:`trvae.metrics.transfer_metrics`: where to find values and library sizes.
    title
        Title of the plot.
    ax
        Axes whose place the plot and its legend take. By default a new figure.
    show, save, return_fig
        See :func:`mean_scatter`: show, save or return the figure.

    Returns
    -------
    The axes of the dots or violins, or the figure if ``return_fig``, or nothing if the figure is
    shown.

    Raises
    ------
    ValueError
        If ``kind`` is unknown, the column is missing, a label has no predicted or no control
        cells, no label has observed cells, no label or gene is selected, a gene is unknown, or
        the groups are not comparable (see :func:`trvae.metrics.transfer_metrics`).
    """
    check_arguments(locals(), {"kind": choice("dot", "violin")})
    groups = {"control": control, "predicted": predicted, "observed": observed}
    values = normalized(groups, layer, library_key)
    columns = {
        name: check_obs_column(adata, f"{name}: labels_key", labels_key)
        for name, adata in groups.items()
    }
    known = list(pd.Categorical(columns["predicted"]).remove_unused_categories().categories)
    if labels is None:
        labels = known
    labels = list(dict.fromkeys(labels)) if pd.api.types.is_list_like(labels) else [labels]
    if not labels or not set(labels) <= set(known):
        raise ValueError(f"labels must be among the predicted {join_names(known)}, got {labels}.")
    rows = {
        (label, name): values[name][(columns[name] == label).to_numpy()]
        for label in labels
        for name in groups
        if (columns[name] == label).any()
    }
    without_control = [label for label in labels if (label, "control") not in rows]
    if without_control:
        raise ValueError(f"control has no cells of {join_names(without_control)}.")
    if not any((label, "observed") in rows for label in labels):
        raise ValueError(f"observed has no cells of any of {join_names(labels)}.")
    means = {row: cells.mean(0) for row, cells in rows.items()}
    changes = [
        np.abs(means.get((label, "observed"), means[label, "predicted"]) - means[label, "control"])
        for label in labels
    ]
    chosen = chosen_genes(observed.var_names, genes, np.mean(changes, axis=0), n_genes)
    if len(chosen) == 0:
        raise ValueError(f"No genes are selected: genes={genes!r}, n_genes={n_genes}.")
    names = [f"{label}, {name}" for label, name in rows]
    cells = AnnData(
        np.concatenate([cells[:, chosen] for cells in rows.values()]),
        obs={"row": pd.Categorical(np.repeat(names, list(map(len, rows.values()))), names)},
        var=pd.DataFrame(index=observed.var_names[chosen]),
    )
    borders = [i for i, (a, b) in enumerate(pairwise(rows), 1) if a[0] != b[0]]
    output = Output(ax, show, save, return_fig)
    return output.finish([_draw(cells, borders, kind, title, output)])


def _draw(
    cells: AnnData, borders: list[int], kind: str, title: str | None, output: Output
) -> Axes:
    """Draw cells of the categories ``obs["row"]``, with lines at borders between labels."""
    genes, rows = list(cells.var_names), list(cells.obs["row"].cat.categories)
    if kind == "dot":
        ax, size = _axes_with_margins(output, genes, rows, row_height=0.25)
        plot = sc.pl.DotPlot(cells, genes, "row", title=title, figsize=size, ax=ax)
        plot.style(size_exponent=1, dot_max=1)
        plot.legend(size_title="cells above 0 [%]", colorbar_title=f"mean {_UNIT}")
    else:
        ax, size = _axes_with_margins(output, rows, genes, row_height=0.5)
        # With pandas 3, seaborn 0.13 would dodge the violins, which makes them thin.
        plot = sc.pl.StackedViolin(
            cells, genes, "row", title=title, figsize=size, ax=ax, dodge=False
        )
        plot.swap_axes().style(yticklabels=True, linewidth=0.5, x_padding=0.2, y_padding=0.2)
        plot.legend(title=f"median {_UNIT}")
    others = ax.figure.axes
    main = plot.get_axes()["mainplot_ax"]
    drawn = [panel for panel in ax.figure.axes if panel not in others]
    for border in borders:
        draw_border = main.axhline if kind == "dot" else main.axvline
        draw_border(border, color="0.8", linewidth=0.6, zorder=0)
    if kind == "violin":
        # Scanpy adds the axes of the genes right after the main ones.
        for panel, gene in zip(drawn[drawn.index(main) + 1 :], genes, strict=False):
            values = cells[:, gene].X.ravel()
            panel.autoscale(False)
            means = [values[cells.obs["row"] == row].mean() for row in rows]
            panel.plot(means, "k_", markersize=7)
            # Scanpy's own ticks reach far below 0.
            limits = min(values.min(), 0), values.max() or 1
            panel.set_ylim(limits)
            panel.set_yticks(limits, [f"{limit:.1f}" for limit in limits])
    # Out of scanpy's nested grids, which constrained layout can't arrange.
    for panel in drawn:
        place = panel.get_position()
        panel.set_subplotspec(ax.get_subplotspec())
        panel.set_position(place)
    return main


def _axes_with_margins(
    output: Output, x_names: list[str], y_names: list[str], row_height: float
) -> tuple[Any, tuple[float, float]]:
    """Return axes with room for tick labels beside them, and their size in inches.

    Layout engines, which would make this room, don't work with scanpy's plots.
    """
    left, bottom = (_TICK + _LETTER * max(map(len, names)) for names in (y_names, x_names))
    width, height = 0.3 * len(x_names) + _LEGENDS, max(row_height * len(y_names), 2.4)
    ax: Any = output.axes(panel_size=(left + width + 0.2, bottom + height + 0.6))[0]
    ax.set_axis_off()
    ax.figure.canvas.figure.draw_without_rendering()
    box, inches = ax.get_position(), ax.figure.bbox.size / ax.figure.dpi
    start = box.min + np.minimum((left, bottom) / inches, np.array(box.size) / 2)
    end = box.max - np.minimum((0.1, 0.3) / inches, np.array(box.size) / 4)
    sides = dict(zip(("left", "bottom", "right", "top"), (*start, *end), strict=True))
    ax.set_subplotspec(GridSpec(1, 1, figure=ax.figure, **sides)[0])
    width, height = ax.get_position().size * inches
    return ax, (max(width, _LEGENDS + 0.5), height)
