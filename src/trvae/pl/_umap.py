"""How a model represents cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from trvae._utils._arguments import check_choice, check_positive_integer, check_seed
from trvae.data._checks import cell_positions, check_obs_column
from trvae.pl._colors import styles
from trvae.pl._models import cells_to_plot, check_is_one_model
from trvae.pl._output import SMALL_FONT, Output, legend_outside

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from typing import Literal

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"latent": "latent representation $z$", "decoder": "first decoder layer"}
# Beyond so many, a legend has another column.
_LEGEND_ROWS = 12


def umap(
    model: Any,
    adata: AnnData | None = None,
    *,
    representation: Literal["latent", "decoder", "both"] = "both",
    color: str | Sequence[str] | None = None,
    indices: Sequence[int] | Sequence[bool] | None = None,
    n_neighbors: int = 15,
    min_dist: float = 0.5,
    seed: int = 0,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """UMAP of the latent representation and of the first decoder layer.

    One row of panels a representation, in the same coordinates coloured by condition and by
    label. Where the MMD has done its work, conditions lie over each other in the first decoder
    layer while labels stay apart.

    Parameters
    ----------
    model
        A trained :class:`~trvae.TRVAE`.
    adata
        Cells, by default those that the model was trained on.
    representation
        One of:

        * ``"latent"`` - :meth:`trvae.TRVAE.get_latent_representation`
        * ``"decoder"`` - :meth:`trvae.TRVAE.get_mmd_representation`
        * ``"both"`` - one after the other
    color
        Columns of ``obs`` to colour by, by default those of the conditions and, if there are
        any, of the labels.
    indices
        Positions of the cells to use, or a mask of them. By default all; of very many cells, a
        random sample is faster.
    n_neighbors
        Neighbours of each cell.
    min_dist
        Least distance of cells in the plot, as in :func:`scanpy.tl.umap`.
    seed
        Seed of the coordinates and of the order in which cells are drawn over each other. On
        another machine the same seed can give other coordinates.
    ax
        Axes to draw into, as many as there are panels, by default those of a new figure.
    show, save, return_fig
        As in :func:`mean_scatter`.

    Returns
    -------
    The axes, a list of them if there are several panels, or the figure if ``return_fig``, or
    nothing if the figure is shown.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If an argument is not one of those allowed, a column is missing or has more values than
        can be told apart, there are no more cells than ``n_neighbors``, the cells don't fit the
        model, or it is an ensemble, whose models each have a representation.

    References
    ----------
    McInnes, Healy & Melville, *arXiv* 1802.03426 (2018).
    """
    check_choice("representation", representation, (*_TITLES, "both"))
    check_positive_integer("n_neighbors", n_neighbors)
    check_seed(seed)
    check_is_one_model(model, "representation")
    cells = cells_to_plot(model, adata)
    positions = cell_positions(indices, cells.n_obs)
    if len(positions) <= n_neighbors:
        raise ValueError(f"{len(positions)} cells are too few for n_neighbors={n_neighbors}.")
    columns = [
        check_obs_column(cells, "color", key).iloc[positions]
        for key in _keys_to_color_by(model, cells, color)
    ]
    looks = [styles(_groups_of(column), f"color {column.name!r}") for column in columns]
    chosen = list(_TITLES) if representation == "both" else [representation]
    represent = {
        "latent": model.get_latent_representation,
        "decoder": model.get_mmd_representation,
    }
    coordinates = [
        _umap_coordinates(represent[name](adata, indices=positions), n_neighbors, min_dist, seed)
        for name in chosen
    ]
    output = Output(ax, show, save, return_fig)
    n_panels = len(chosen) * len(columns)
    # Room for the cells and for the columns of the legend.
    width = 2.7 + 1.3 * max(map(_legend_columns, looks))
    axes = output.axes(n_panels, panel_size=(width, 2.9), n_columns=len(columns))
    order = np.random.default_rng(seed).permutation(len(positions))
    for i, panel in enumerate(axes):
        row, column = divmod(i, len(columns))
        _draw(panel, coordinates[row][order], columns[column].iloc[order], looks[column])
        panel.set_title(_TITLES[chosen[row]], fontsize="medium")
    return output.finish(axes)


def _keys_to_color_by(model: Any, cells: AnnData, color: str | Sequence[str] | None) -> list[str]:
    if color is not None:
        keys = [color] if isinstance(color, str) else list(color)
        if not keys:
            raise ValueError(f"color={color!r} names no column of adata.obs.")
        return keys
    setup = model.registry["setup_args"]
    # New cells need no labels.
    has_labels = setup["labels_key"] in cells.obs
    return [setup["condition_key"], *([setup["labels_key"]] if has_labels else [])]


def _groups_of(column: pd.Series) -> list:
    """Values that occur, in the order of the categories."""
    return list(column.astype("category").cat.remove_unused_categories().cat.categories)


def _umap_coordinates(
    values: np.ndarray, n_neighbors: int, min_dist: float, seed: int
) -> np.ndarray:
    """Return the UMAP, ``n_cells x 2``, of ``n_cells x n_features``."""
    # It comes with scanpy, and takes seconds to import.
    from umap import UMAP

    reducer = UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1)
    return reducer.fit_transform(values)


def _legend_columns(groups: Collection) -> int:
    return -(-len(groups) // _LEGEND_ROWS)


def _draw(ax: Axes, coordinates: np.ndarray, column: pd.Series, look: dict) -> None:
    """Draw cells in the order given, so that no group lies on top of the others."""
    groups = list(look)
    codes = pd.Categorical(column, categories=groups).codes
    paths = [MarkerStyle(style.marker) for style in look.values()]
    shapes = [marker.get_path().transformed(marker.get_transform()) for marker in paths]
    points: PathCollection = ax.scatter(
        coordinates[:, 0],
        coordinates[:, 1],
        s=np.clip(60_000 / len(coordinates), 4, 30),
        linewidths=0,
        alpha=0.7,
        rasterized=True,
    )
    points.set_paths([shapes[code] for code in codes])
    points.set_facecolor(to_rgba_array([style.color for style in look.values()], 0.7)[codes])
    legend_outside(
        ax,
        [
            Line2D([], [], linestyle="", marker=style.marker, color=style.color, label=str(group))
            for group, style in look.items()
        ],
        title=column.name,
        ncols=_legend_columns(groups),
        handletextpad=0.2,
    )
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(SMALL_FONT)
    ax.spines[["top", "right"]].set_visible(False)
