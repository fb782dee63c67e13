"""Predicted against observed, one point a gene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np

from trvae._data import check_choice
from trvae.metrics import (
    log_normalized,
    median_library_size,
    pearson_of_change,
    r2_of_means,
    r2_of_variances,
)
from trvae.metrics._transfer_metrics import check_comparable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_POINT, _NAMED = "#0072B2", "#D55E00"


def mean_scatter(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData | None = None,
    *,
    statistic: Literal["mean", "variance"] = "mean",
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
    """Each gene's mean (or variance) in predicted against observed cells.

    Parameters
    ----------
    predicted, observed
        Cells as predicted and as measured: counts, or log-normalised values.
    control
        The cells that the prediction was made from. With them, the genes that change most are
        named, otherwise those that the prediction misses most.
    statistic
        ``"mean"`` or ``"variance"``.
    genes
        Genes to name in place of those.
    n_genes
        Number of genes to name.
    layer, library_key
        As in :func:`trvae.metrics.transfer_metrics`.
    title
        Title of the plot.
    ax
        Axes to draw into, by default those of a new figure.
    show
        Whether to show the figure, by default if none of ``ax``, ``save`` and ``return_fig`` is
        given.
    save
        File to save the figure to.
    return_fig
        Whether to return the figure.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        If ``statistic`` is not one of those, a gene is unknown, or the groups are not comparable
        as in :func:`trvae.metrics.transfer_metrics`.
    """
    check_choice("statistic", statistic, ("mean", "variance"))
    values = _normalize(
        {"predicted": predicted, "observed": observed, "control": control}, layer, library_key
    )
    agreement = r2_of_means if statistic == "mean" else r2_of_variances
    summary = {k: v.mean(0) if statistic == "mean" else v.var(0) for k, v in values.items()}
    against = summary.get("control", summary["predicted"])
    return _scatter(
        summary["observed"],
        summary["predicted"],
        names=observed.var_names,
        named=_genes_to_name(observed, genes, summary["observed"] - against, n_genes),
        labels=(f"observed {statistic}", f"predicted {statistic}"),
        title=title,
        note=f"$R^2$ = {agreement(values['predicted'], values['observed']):.3f}",
        output=(ax, show, save, return_fig),
    )


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
    values = _normalize(
        {"predicted": predicted, "observed": observed, "control": control}, layer, library_key
    )
    before = values["control"].mean(0)
    observed_change = values["observed"].mean(0) - before
    return _scatter(
        observed_change,
        values["predicted"].mean(0) - before,
        names=observed.var_names,
        named=_genes_to_name(observed, genes, observed_change, n_genes),
        labels=("observed change from control", "predicted change from control"),
        title=title,
        note=f"Pearson's $r$ = {pearson_of_change(*values.values()):.3f}",
        output=(ax, show, save, return_fig),
    )


def _normalize(
    groups: dict[str, AnnData | None], layer: str | None, library_key: str | None
) -> dict[str, np.ndarray]:
    present = {name: adata for name, adata in groups.items() if adata is not None}
    check_comparable(present, layer)
    scale_to = present.get("control", present["observed"])
    target_sum = median_library_size(scale_to, layer, library_key)
    genes = present["observed"].var_names
    return {
        name: log_normalized(
            adata[:, genes], target_sum=target_sum, layer=layer, library_key=library_key
        )
        for name, adata in present.items()
    }


def _genes_to_name(
    observed: AnnData, genes: Sequence[str] | None, interest: np.ndarray, n_genes: int
) -> np.ndarray:
    if genes is None:
        return np.argsort(-np.abs(interest))[:n_genes]
    positions = observed.var_names.get_indexer(list(genes))
    if (positions < 0).any():
        raise ValueError(f"genes has names that are not in var_names: {list(genes)}.")
    return positions


def _scatter(x, y, *, names, named, labels, title, note, output):
    ax, show, save, return_fig = output
    given_ax = ax is not None
    if not given_ax:
        _, ax = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low or 1)
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="0.6", linewidth=1, zorder=0)
    ax.scatter(x, y, s=10, alpha=0.5, color=_POINT, linewidths=0, rasterized=True)
    ax.scatter(x[named], y[named], s=18, color=_NAMED, linewidths=0)
    _name_points(ax, x[named], y[named], [names[i] for i in named], limits)
    ax.set(xlim=limits, ylim=limits, xlabel=labels[0], ylabel=labels[1], title=title or "")
    ax.set_aspect("equal")
    ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top")
    ax.spines[["top", "right"]].set_visible(False)

    figure = ax.figure
    if save is not None:
        figure.savefig(save, dpi=200)
    if return_fig:
        return figure
    if show or (show is None and not given_ax and save is None):
        plt.show()
        return None
    return ax


def _name_points(ax, x, y, names, limits) -> None:
    """Write names beside points, from the bottom up, none over another."""
    step = 0.045 * (limits[1] - limits[0])
    order = np.argsort(y)
    lowest_free = -np.inf
    right_half = x > np.mean(limits)
    for i in order:
        height = max(y[i], lowest_free)
        lowest_free = height + step
        ax.annotate(
            names[i],
            (x[i], y[i]),
            xytext=(x[i] + (-1 if right_half[i] else 1) * 1.2 * step, height),
            ha="right" if right_half[i] else "left",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5},
        )
