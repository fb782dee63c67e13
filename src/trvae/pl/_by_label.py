"""The response of each label: control, predicted and observed cells side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from trvae._utils._arguments import check_choice, join_names
from trvae.data._checks import check_obs_column
from trvae.pl._colors import BLUE, ORANGE, SEQUENTIAL
from trvae.pl._output import SMALL_FONT, Output, legend_outside
from trvae.pl._values import chosen_genes, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUPS = ("control", "predicted", "observed")
# Told apart by lightness, too.
_FILLS = {"control": "white", "predicted": BLUE, "observed": ORANGE}
_UNIT = "log-normalised expression"
# Area in square points of the dot of all cells, and distances in rows between labels.
_LARGEST_DOT, _GAP = 110, 0.6


class _Values(NamedTuple):
    """Values of each group's cells of each label."""

    of: dict[tuple[Any, str], np.ndarray]
    """Label and group to ``n_cells x n_genes``; what has no cells is left out."""
    labels: list
    genes: list[str]


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
    """Genes of the response in control, predicted and observed cells of each label.

    Values are compared as in :func:`mean_scatter`.

    Parameters
    ----------
    predicted, observed, control
        Cells as predicted, as measured, and those that the prediction was made from. A label that
        was never measured under the target condition has no observed cells.
    labels_key
        Column of ``obs`` with the labels, such as cell types.
    labels
        Labels to draw, in this order, by default all that have predicted cells.
    genes
        Genes to draw, in this order, by default those that change most.
    n_genes
        Number of these: genes of the largest absolute change of the mean from control, averaged
        over labels, as observed or, where a label has no observed cells, as predicted.
    kind
        One of:

        * ``"dot"`` - the mean as the colour of a dot and the share of cells with a value above 0
          as its area
        * ``"violin"`` - distributions over cells, with their means
    layer, library_key
        As in :func:`trvae.metrics.transfer_metrics`.
    title
        Title of the plot.
    ax
        Axes to draw into, by default those of a new figure.
    show, save, return_fig
        As in :func:`mean_scatter`.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown. Violins are in
    axes within them (``ax.child_axes``), one a gene.

    Raises
    ------
    ValueError
        If ``kind`` is not one of those, there is no such column, a label has no predicted or no
        control cells, no label has observed cells, no label or gene is chosen, a gene is unknown,
        or the groups are not comparable as in :func:`trvae.metrics.transfer_metrics`.
    """
    check_choice("kind", kind, ("dot", "violin"))
    groups = {"control": control, "predicted": predicted, "observed": observed}
    values = _values(groups, labels_key, labels, genes, n_genes, layer, library_key)
    output = Output(ax, show, save, return_fig)
    # In inches, with room for names and the legend.
    n_labels, n_drawn = len(values.labels), len(values.genes)
    if kind == "dot":
        n_rows = len(values.of) + _GAP * n_labels
        size = (0.32 * n_drawn + 2.9, max(0.19 * n_rows + 0.9, 2.6))
    else:
        size = (0.55 * n_labels + 2.3, 0.62 * n_drawn + 1.1)
    axes = output.axes(panel_size=size)
    (_draw_dots if kind == "dot" else _draw_violins)(axes[0], values, title or "")
    return output.finish(axes)


def _values(groups, labels_key, labels, genes, n_genes, layer, library_key) -> _Values:
    by_group = normalized(groups, layer, library_key)
    label_of = {
        name: check_obs_column(adata, f"{name}: labels_key", labels_key)
        for name, adata in groups.items()
    }
    used = label_of["predicted"].astype("category").cat.remove_unused_categories()
    known = list(used.cat.categories)
    if labels is None:
        labels = known
    labels = [labels] if isinstance(labels, str) else list(dict.fromkeys(labels))
    if not labels or not set(labels) <= set(known):
        raise ValueError(f"labels={labels!r} are not among the predicted: {join_names(known)}.")
    cells = {
        (label, group): by_group[group][(label_of[group] == label).to_numpy()]
        for label in labels
        for group in _GROUPS
    }
    there = {which: values for which, values in cells.items() if len(values)}
    without_control = [label for label in labels if (label, "control") not in there]
    if without_control:
        raise ValueError(f"control has no cells of {join_names(without_control)}.")
    if not any((label, "observed") in there for label in labels):
        raise ValueError(f"observed has no cells of any of {join_names(labels)}.")

    changes = []
    for label in labels:
        after = there.get((label, "observed"), there[label, "predicted"])
        changes.append(np.abs(after.mean(0) - there[label, "control"].mean(0)))
    var_names = groups["observed"].var_names
    chosen = chosen_genes(var_names, genes, np.mean(changes, axis=0), n_genes)
    if len(chosen) == 0:
        raise ValueError(f"No genes are chosen: genes={genes!r}, n_genes={n_genes}.")
    return _Values(
        {which: values[:, chosen] for which, values in there.items()},
        labels,
        [str(var_names[i]) for i in chosen],
    )


def _draw_dots(ax: Axes, values: _Values, title: str) -> None:
    height, rows, middles = 0.0, [], {}
    for label in values.labels:
        own = [height + i for i in range(sum((label, g) in values.of for g in _GROUPS))]
        middles[label] = np.mean(own)
        rows += own
        height = own[-1] + 1 + _GAP
        ax.axhline(height - (1 + _GAP) / 2, color="0.85", linewidth=0.6, zorder=0)
    x, y = np.meshgrid(np.arange(len(values.genes)), rows)
    shares = np.array([(cells > 0).mean(0) for cells in values.of.values()])
    dots = ax.scatter(
        x.ravel(),
        y.ravel(),
        s=_LARGEST_DOT * shares.ravel(),
        c=np.array([cells.mean(0) for cells in values.of.values()]).ravel(),
        cmap=SEQUENTIAL,
        edgecolors="0.3",
        linewidths=0.4,
    )
    ax.set(xlim=(-0.6, len(values.genes) - 0.4), ylim=(height - _GAP / 2 - 0.5, -0.8))
    ax.set_title(title, fontsize="medium")
    ax.set_xticks(range(len(values.genes)), values.genes, rotation=90, fontsize=SMALL_FONT)
    ax.set_yticks(rows, [group for _, group in values.of], fontsize=SMALL_FONT)
    ax.tick_params(length=2)
    for label, middle in middles.items():
        # Left of the names of the groups, of which the longest has nine letters.
        ax.annotate(
            str(label),
            (0, middle),
            xycoords=ax.get_yaxis_transform(),
            xytext=(-6.6 * SMALL_FONT, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=SMALL_FONT,
            fontweight="bold",
            annotation_clip=False,
        )
    legend_outside(
        ax,
        [
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                color="0.6",
                markeredgecolor="0.3",
                markersize=np.sqrt(_LARGEST_DOT * percent / 100),
                label=str(percent),
            )
            for percent in (20, 60, 100)
        ],
        title="cells above 0 [%]",
    )
    bar_axes = ax.inset_axes((1.06, 0.0, 0.05, 0.4))
    bar = ax.figure.colorbar(dots, cax=bar_axes)
    bar.set_label(f"mean\n{_UNIT}", fontsize=SMALL_FONT)
    bar.ax.tick_params(labelsize=SMALL_FONT)


def _draw_violins(ax: Axes, values: _Values, title: str) -> None:
    ax.set_axis_off()
    ax.set_title(f"{title}\n{_UNIT}" if title else _UNIT, loc="left", fontsize=SMALL_FONT)
    # Room between the labels, of which each has as many places as there are groups.
    position = {
        (label, group): i * (len(_GROUPS) + 1) + j
        for i, label in enumerate(values.labels)
        for j, group in enumerate(_GROUPS)
    }
    left_of_ticks = ScaledTranslation(-3.2 * SMALL_FONT / 72, 0, ax.figure.dpi_scale_trans)
    n_genes = len(values.genes)
    for i, gene in enumerate(values.genes):
        panel = ax.inset_axes((0, 1 - (i + 0.84) / n_genes, 1, 0.84 / n_genes))
        for which, cells in values.of.items():
            _draw_violin(panel, cells[:, i], position[which], _FILLS[which[1]])
        panel.set_xlim(-1, max(position.values()) + 1)
        panel.set_ylabel(gene, rotation=0, ha="right", va="center", fontsize=SMALL_FONT)
        panel.yaxis.set_label_coords(0, 0.5, panel.transAxes + left_of_ticks)
        panel.set_xticks([position[label, _GROUPS[1]] for label in values.labels], [])
        panel.tick_params(labelsize=SMALL_FONT, length=2)
        panel.locator_params(axis="y", nbins=3)
        panel.spines[["top", "right"]].set_visible(False)
    panel.set_xticklabels(map(str, values.labels), rotation=45, ha="right", rotation_mode="anchor")
    legend_outside(
        ax,
        [
            *(Patch(label=group, edgecolor="black", facecolor=_FILLS[group]) for group in _GROUPS),
            Line2D([], [], color="black", linewidth=1.5, label="mean"),
        ],
    )


def _draw_violin(ax: Axes, values: np.ndarray, position: int, fill: str) -> None:
    drawn: dict[str, Any] = ax.violinplot(
        [values], positions=[position], widths=0.95, showmeans=True, showextrema=False
    )
    (body,) = drawn["bodies"]
    body.set(alpha=1, edgecolor="black", linewidth=0.5, facecolor=fill)
    drawn["cmeans"].set(color="black", linewidth=1.5)
