"""UMAP of how a model represents cells."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from trvae._scvi import LATENT_POSTERIOR, minify_type
from trvae._utils._arguments import POSITIVE_INTEGER, SEED, check_arguments, choice, join_names
from trvae.data._checks import cell_positions
from trvae.pl._models import cells_to_plot, check_is_one_model, condition_key
from trvae.pl._output import SMALL_FONT, Output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REPRESENTATIONS = {
    "latent": ("get_latent_representation", "latent representation"),
    "decoder": ("get_mmd_representation", "first decoder layer"),
}
# With those of labels, conditions would be mistaken for these.
_OF_CONDITIONS = (
    "#999999", "#000000", "#e7298a", "#a6761d", "#7570b3", "#66a61e", "#1b9e77", "#d95f02",
)  # fmt: skip

_RULES = {
    "representation": choice(*_REPRESENTATIONS, "both"),
    "n_neighbors": POSITIVE_INTEGER,
    "seed": SEED,
}


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

    Each representation has a row of panels with the same coordinates, coloured by condition and
    by label. Where the MMD has done its work, conditions overlap in the first decoder layer while
    labels stay apart.

    Parameters
    ----------
    model
        A trained :class:`~trvae.TRVAE`.
    adata
        Cells. By default those that the model was trained on.
    representation
        One of:

        * ``"latent"`` - :meth:`trvae.TRVAE.get_latent_representation`
        * ``"decoder"`` - :meth:`trvae.TRVAE.get_mmd_representation`
        * ``"both"`` - one row of panels for each
    color
        Columns of ``obs`` or genes (their values in ``X``) to colour by. By default the
        conditions and, if there are any, the labels. Colours in ``uns``, as scanpy keeps them, are
        used.
    indices
        Positions of the cells to use, or a mask of them. By default all cells; a random sample
        saves time if there are very many.
    n_neighbors
        Number of neighbours of each cell, see :func:`scanpy.pp.neighbors`.
    min_dist
        Minimum distance between cells in the plot, see :func:`scanpy.tl.umap`.
    seed
        Seed of the coordinates and of the order in which overlapping cells are drawn. The same
        seed can give other coordinates on another machine.
    ax
        Axes to draw into, one per panel. By default those of a new figure.
    show, save, return_fig
        See :func:`mean_scatter`: show, save or return the figure.

    Returns
    -------
    The axes, a list of them if there are several panels, or the figure if ``return_fig``, or
    nothing if the figure is shown.

    Raises
    ------
    RuntimeError
        If the model is not trained.
    ValueError
        If an argument is not one of those allowed, a column or gene is missing, there are no more
        cells than ``n_neighbors``, the cells don't fit the model, or the model is an ensemble,
        whose members each have a representation.

    References
    ----------
    McInnes, Healy & Melville, *arXiv* 1802.03426 (2018).
    """
    check_arguments(locals(), _RULES)
    check_is_one_model(model, "representation")
    cells = cells_to_plot(model, adata)
    positions = cell_positions(indices, cells.n_obs)
    if len(positions) <= n_neighbors:
        raise ValueError(f"{len(positions)} cells are too few for n_neighbors={n_neighbors}.")
    colors = _colors(model, cells, color).iloc[positions]
    # Cells may have been chosen twice.
    colors.index = pd.RangeIndex(len(colors)).astype(str)
    # Those that scanpy keeps.
    given = {name: cells.uns[name] for key in colors if (name := f"{key}_colors") in cells.uns}
    # Drawn in random order, so that no group hides the others.
    order = np.random.default_rng(seed).permutation(len(positions))
    drawn = {}
    for name in _REPRESENTATIONS if representation == "both" else [representation]:
        method, title = _REPRESENTATIONS[name]
        values = getattr(model, method)(adata, indices=positions)
        coordinates = _coordinates(values, n_neighbors, min_dist, seed)
        drawn[title] = AnnData(obs=colors, obsm={"X_umap": coordinates}, uns=given)[order].copy()
    panels = list(product(drawn, colors))
    output = Output(ax, show, save, return_fig)
    axes = output.axes(len(panels), panel_size=(4.2, 3.2), n_columns=len(colors.columns))
    for panel, (title, key) in zip(axes, panels, strict=True):
        _draw(panel, drawn[title], key, f"{title}: {key}", _palette(model, colors[key], given))
    return output.finish(axes)


def _colors(model: Any, cells: AnnData, color: str | Sequence[str] | None) -> pd.DataFrame:
    """Return the columns and genes to colour by."""
    setup = model.registry["setup_args"]
    registered = (setup["condition_key"], setup["labels_key"])
    if color is None:
        # New cells need no labels.
        color = [key for key in registered if key in cells.obs or key == registered[0]]
    keys = [color] if isinstance(color, str) else list(color)
    if not keys:
        raise ValueError(f"color={color!r} must name at least one column of adata.obs or gene.")
    colors = {}
    for key in keys:
        if key in cells.obs:
            column = cells.obs[key]
            # Conditions and labels are categories even if their names are numbers.
            colors[key] = column.astype("category") if key in registered else column
        elif isinstance(cells, AnnData) and key in cells.var_names:
            if minify_type(cells) == LATENT_POSTERIOR:
                raise ValueError(
                    f"color {key!r} is a gene, but the minified AnnData has no expression."
                )
            colors[key] = sc.get.obs_df(cells, key)[key]
        else:
            raise ValueError(
                f"color {key!r} is neither a gene nor in adata.obs: {join_names(cells.obs)}."
            )
    return pd.DataFrame(colors)


def _coordinates(values: np.ndarray, n_neighbors: int, min_dist: float, seed: int) -> np.ndarray:
    """Return the UMAP, ``n_cells x 2``, of ``n_cells x n_features``."""
    cells = AnnData(values)
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
    sc.tl.umap(cells, min_dist=min_dist, random_state=seed)
    return cells.obsm["X_umap"]


def _palette(model: Any, column: pd.Series, given: dict[str, Any]) -> list[str] | None:
    """Return colours of conditions; ``None`` for other columns, given colours or too many."""
    if column.name != condition_key(model) or f"{column.name}_colors" in given:
        return None
    number = column.cat.categories.size
    return list(_OF_CONDITIONS[:number]) if number <= len(_OF_CONDITIONS) else None


def _draw(ax: Axes, cells: AnnData, key: str, title: str, palette: list[str] | None) -> None:
    sc.pl.umap(
        cells,
        color=key,
        palette=palette,
        ax=ax,
        title=title,
        # Scanpy's default, which is huge for few cells.
        size=min(120_000 / cells.n_obs, 120),
        legend_fontsize=SMALL_FONT,
        colorbar_loc=None,
        show=False,
    )
    if ax.get_legend() is None:
        # Scanpy's own would be drawn in pyplot's current figure.
        ax.figure.colorbar(ax.collections[0], ax=ax)
