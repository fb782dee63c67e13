"""Predicted against observed, one point a gene."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.transforms import Bbox

from trvae._utils._arguments import check_choice
from trvae.metrics import pearson_of_change, r2_of_means, r2_of_variances
from trvae.pl._colors import BLUE, VERMILLION
from trvae.pl._output import SMALL_FONT, Output, whole_figure
from trvae.pl._values import chosen_genes, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AGREEMENT = {"mean": r2_of_means, "variance": r2_of_variances}
_PANEL_SIZE = (4.2, 4.2)
# Where names are tried: points between them and what they name, in each of these directions.
_DISTANCES = (4, 10, 18, 27, 37, 48, 60)
_DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


def mean_scatter(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData | None = None,
    *,
    statistic: Literal["mean", "variance", "both"] = "mean",
    genes: Sequence[str] | None = None,
    n_genes: int = 8,
    layer: str | None = None,
    library_key: str | None = None,
    title: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Each gene's mean (or variance) in predicted against observed cells.

    Values are compared as ``log(1 + count / library size * median library size of control)``, or
    as they are if they are log-normalised.

    Parameters
    ----------
    predicted, observed
        Cells as predicted and as measured: counts, or log-normalised values.
    control
        The cells that the prediction was made from. With them, the genes that change most are
        named, otherwise those that the prediction misses most.
    statistic
        ``"mean"``, ``"variance"``, or ``"both"`` in panels side by side.
    genes
        Genes to name in place of those.
    n_genes
        Number of genes to name.
    layer, library_key
        As in :func:`trvae.metrics.transfer_metrics`.
    title
        Title of the plot.
    ax
        Axes to draw into, two of them for ``"both"``, by default those of a new figure.
    show
        Whether to show the figure, by default if none of ``ax``, ``save`` and ``return_fig`` is
        given.
    save
        File to save the figure to, in the format that its name ends with.
    return_fig
        Whether to return the figure.

    Returns
    -------
    The axes, a list of them for ``"both"``, or the figure if ``return_fig``, or nothing if the
    figure is shown.

    Raises
    ------
    ValueError
        If ``statistic`` is not one of those, a gene is unknown, ``ax`` is not as many axes as
        there are panels, or the groups are not comparable as in
        :func:`trvae.metrics.transfer_metrics`.
    """
    check_choice("statistic", statistic, (*_AGREEMENT, "both"))
    values = normalized(
        {"predicted": predicted, "observed": observed, "control": control}, layer, library_key
    )
    statistics = list(_AGREEMENT) if statistic == "both" else [statistic]
    summaries = [
        {k: v.mean(0) if name == "mean" else v.var(0) for k, v in values.items()}
        for name in statistics
    ]
    named = [
        chosen_genes(
            observed.var_names,
            genes,
            summary["observed"] - summary.get("control", summary["predicted"]),
            n_genes,
        )
        for summary in summaries
    ]
    output = Output(ax, show, save, return_fig)
    axes = output.axes(len(statistics), panel_size=_PANEL_SIZE, n_columns=2)
    for panel, name, summary, genes_named in zip(axes, statistics, summaries, named, strict=True):
        _draw(
            panel,
            summary["observed"],
            summary["predicted"],
            names=observed.var_names,
            named=genes_named,
            quantity=f"{name} of log-normalised expression",
            title=title,
            note=f"$R^2$ = {_AGREEMENT[name](values['predicted'], values['observed']):.3f}",
        )
    return output.finish(axes)


def response(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    *,
    genes: Sequence[str] | None = None,
    n_genes: int = 8,
    layer: str | None = None,
    library_key: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Each gene's change of the mean from control: predicted against observed.

    Parameters
    ----------
    predicted, observed, control
        Cells as predicted, as measured, and those that the prediction was made from.
    genes, n_genes, layer, library_key, title, ax, show, save, return_fig
        As in :func:`mean_scatter`.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        If a gene is unknown, or the groups are not comparable as in
        :func:`trvae.metrics.transfer_metrics`.
    """
    values = normalized(
        {"predicted": predicted, "observed": observed, "control": control}, layer, library_key
    )
    before = values["control"].mean(0)
    observed_change = values["observed"].mean(0) - before
    named = chosen_genes(observed.var_names, genes, observed_change, n_genes)
    output = Output(ax, show, save, return_fig)
    axes = output.axes(panel_size=_PANEL_SIZE)
    _draw(
        axes[0],
        observed_change,
        values["predicted"].mean(0) - before,
        names=observed.var_names,
        named=named,
        quantity="change of mean log-normalised expression",
        title=title,
        note=f"Pearson's $r$ = {pearson_of_change(*values.values()):.3f}",
    )
    return output.finish(axes)


def _draw(ax, x, y, *, names, named, quantity, title, note) -> None:
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low or 1)
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="0.6", linewidth=1, zorder=0)
    ax.scatter(x, y, s=10, alpha=0.5, color=BLUE, linewidths=0, rasterized=True)
    ax.scatter(x[named], y[named], s=20, color=VERMILLION, marker="D", linewidths=0)
    ax.set(
        xlim=limits,
        ylim=limits,
        xlabel=f"observed {quantity}",
        ylabel=f"predicted {quantity}",
        title=title or "",
    )
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(SMALL_FONT + 1)
    ax.tick_params(labelsize=SMALL_FONT)
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", fontsize=SMALL_FONT + 1)
    _name_points(ax, x[named], y[named], [names[i] for i in named])


def _name_points(ax, x, y, names) -> None:
    """Write names beside points where they cover least: no other name, few points."""
    # How many pixels there are is known once the axes are laid out.
    figure = whole_figure(ax)
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    every_point = np.concatenate(
        [ax.transData.transform(points.get_offsets()) for points in ax.collections]
    )
    frame = ax.get_window_extent()
    taken: list[Bbox] = [text.get_window_extent() for text in ax.texts]
    named = ax.transData.transform(np.column_stack([x, y]))
    for i in np.argsort(-y):
        text = ax.annotate(
            names[i],
            (x[i], y[i]),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SMALL_FONT,
            arrowprops={"arrowstyle": "-", "color": "0.4", "linewidth": 0.5},
            zorder=0.5,  # lines lie below the points that they lead to
        )
        size = text.get_window_extent().size
        others = np.delete(named, i, axis=0)
        best: tuple[float, Bbox, np.ndarray] | None = None
        for distance, direction in product(_DISTANCES, _DIRECTIONS):
            offset = np.array(direction) * (size / 2 + distance * pixels)
            corner = named[i] + offset - size / 2
            box = Bbox.from_bounds(*corner, *size)
            inside = ((every_point > box.min) & (every_point < box.max)).all(1)
            is_bad = any(box.overlaps(other) for other in taken) or not (
                frame.contains(*box.min) and frame.contains(*box.max)
            )
            # A name close to another named point would be taken for that one's.
            near = box.padded(4 * pixels)
            n_mistaken = ((others > near.min) & (others < near.max)).all(1).sum()
            cost = inside.sum() + 3 * n_mistaken + distance / 10 + 1_000 * is_bad
            if best is None or cost < best[0]:
                best = (cost, box, offset)
        assert best is not None
        taken.append(best[1])
        text.set_position(best[2] / pixels)
