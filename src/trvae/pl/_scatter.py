"""Predicted against observed values, one point per gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from adjustText import adjust_text

from trvae._utils._arguments import check_arguments, choice
from trvae.metrics import pearson_of_change, r2_of_means, r2_of_variances
from trvae.pl._output import BLUE, SMALL_FONT, VERMILION, Output
from trvae.pl._values import chosen_genes, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STATISTICS: dict = {"mean": (np.mean, r2_of_means), "variance": (np.var, r2_of_variances)}
_PANEL_SIZE = (4.2, 4.2)


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
    """Mean (or variance) of each gene in predicted against observed cells.

    Counts are compared as ``log(1 + count / library size * median library size of control)``,
    log-normalised values as they are.

    Parameters
    ----------
    predicted, observed
        The predicted and the measured cells: counts or log-normalised values.
    control
        The cells that the prediction started from. If given, the genes that change most are
        named, otherwise those with the largest prediction error.
    statistic
        ``"mean"``, ``"variance"``, or ``"both"`` in panels side by side.
    genes
        Genes to name instead.
    n_genes
        Number of genes to name if ``genes`` is not given.
    layer, library_key
        See :func:`trvae.metrics.transfer_metrics`: where to find values and library sizes.
    title
        Title of the plot.
    ax
        Axes to draw into, two of them for ``"both"``. By default those of a new figure.
    show
        Whether to show the figure. By default it is shown unless ``ax``, ``save`` or
        ``return_fig`` is given.
    save
        File to save the figure to. Its suffix decides the format.
    return_fig
        Whether to return the figure instead of the axes.

    Returns
    -------
    The axes, a list of them for ``"both"``, or the figure if ``return_fig``, or nothing if the
    figure is shown.

    Raises
    ------
    ValueError
        If ``statistic`` is unknown, a gene is unknown, the number of axes does not match that of
        the panels, or the groups are not comparable (see
        :func:`trvae.metrics.transfer_metrics`).
    """
    check_arguments(locals(), {"statistic": choice(*_STATISTICS, "both")})
    groups = {"predicted": predicted, "observed": observed, "control": control}
    values = normalized(groups, layer, library_key)
    panels = []
    for name in _STATISTICS if statistic == "both" else [statistic]:
        summarize, agreement = _STATISTICS[name]
        of = {group: summarize(cells, axis=0) for group, cells in values.items()}
        change = of["observed"] - of.get("control", of["predicted"])
        named = chosen_genes(observed.var_names, genes, change, n_genes)
        note = f"$R^2$ = {agreement(values['predicted'], values['observed']):.3f}"
        quantity = f"{name} of log-normalised expression"
        panels.append((of["observed"], of["predicted"], observed.var_names, named, note, quantity))
    output = Output(ax, show, save, return_fig)
    axes = output.axes(len(panels), panel_size=_PANEL_SIZE, n_columns=2)
    for panel, drawn in zip(axes, panels, strict=True):
        _draw(panel, title, *drawn)
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
    """Change of each gene's mean from control: predicted against observed.

    Parameters
    ----------
    predicted, observed, control
        The predicted cells, the measured cells, and the cells that the prediction started from.
    genes, n_genes, layer, library_key, title, ax, show, save, return_fig
        See :func:`mean_scatter`: genes to name, values to compare and what to do with the figure.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        If a gene is unknown, or the groups are not comparable (see
        :func:`trvae.metrics.transfer_metrics`).
    """
    groups = {"predicted": predicted, "observed": observed, "control": control}
    values = normalized(groups, layer, library_key)
    before = values["control"].mean(0)
    x, y = (values[name].mean(0) - before for name in ("observed", "predicted"))
    named = chosen_genes(observed.var_names, genes, x, n_genes)
    note = f"Pearson's $r$ = {pearson_of_change(*values.values()):.3f}"
    quantity = "change of mean log-normalised expression"
    output = Output(ax, show, save, return_fig)
    axes = output.axes(panel_size=_PANEL_SIZE)
    _draw(axes[0], title, x, y, observed.var_names, named, note, quantity)
    return output.finish(axes)


def _draw(ax, title, x, y, names, named, note, quantity) -> None:
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low or 1)
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="0.6", linewidth=1, zorder=0)
    ax.scatter(x, y, s=10, alpha=0.5, color=BLUE, linewidths=0, rasterized=True)
    ax.scatter(x[named], y[named], s=20, color=VERMILION, marker="D", linewidths=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal", title=title or "")
    ax.set_xlabel(f"observed {quantity}", fontsize=SMALL_FONT + 1)
    ax.set_ylabel(f"predicted {quantity}", fontsize=SMALL_FONT + 1)
    ax.tick_params(labelsize=SMALL_FONT)
    ax.spines[["top", "right"]].set_visible(False)
    text = ax.text(0.98, 0.03, note, transform=ax.transAxes, ha="right", fontsize=SMALL_FONT + 1)
    # Thinned out: adjustText takes quadratic time where points are dense.
    grid = (limits[1] - limits[0]) / 60
    points = np.unique(np.round(np.column_stack([x, y]) / grid), axis=0) * grid
    texts = []
    for i in named:
        # Away from the diagonal, where most points are.
        place = {"ha": "right", "va": "bottom"} if y[i] > x[i] else {"ha": "left", "va": "top"}
        texts.append(ax.text(x[i], y[i], names[i], fontsize=SMALL_FONT, **place))
    adjust_text(
        texts,
        *points.T,
        objects=[text],
        ax=ax,
        expand=(1.3, 1.8),
        force_text=(0.3, 0.4),
        iter_lim=200,
        arrowprops={"arrowstyle": "-", "color": "0.4", "linewidth": 0.5},
    )
