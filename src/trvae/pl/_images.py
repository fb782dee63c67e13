"""Rows of images: transferred to other conditions, or interpolated towards them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trvae._utils._arguments import POSITIVE_INTEGER, check_arguments
from trvae.data._checks import cell_positions, check_obs_column, is_list_of_conditions
from trvae.pl._models import cells_to_plot, check_is_one_model, condition_key
from trvae.pl._output import SMALL_FONT, Output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trvae import ImageTRVAE
    from trvae._utils._choices import Estimate

# In inches: the height of an image and the width of the names.
_IMAGE, _NAMES = 0.6, 1.2


def transferred_images(
    model: ImageTRVAE,
    adata: AnnData | None = None,
    target_condition: Any = None,
    *,
    source_condition: Any = None,
    observed: AnnData | None = None,
    indices: Sequence[int] | Sequence[bool] | None = None,
    n_images: int = 10,
    estimate: Estimate = "counterfactual",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Images, and below each its prediction under other conditions.

    Parameters
    ----------
    model
        A trained :class:`~trvae.ImageTRVAE`.
    adata, source_condition, indices, estimate
        See :meth:`trvae.ImageTRVAE.transfer`: images to transfer, and how.
    target_condition
        A condition or a list of them, one per row. By default all conditions except those of the
        images.
    observed
        Real images of the same kind. Those of a target condition are shown below its row. They
        are other images, not what the images above should look like.
    n_images
        Maximum number of images to show, evenly spaced among those selected.
    title, ax, show, save, return_fig
        See :func:`mean_scatter`: title, and what to do with the figure.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        See :meth:`trvae.ImageTRVAE.transfer`: images or conditions that don't fit the model. Also
        if images are neither grey nor RGB nor RGBA.
    """
    adata, chosen, sources = _chosen(model, adata, source_condition, indices, n_images)
    if target_condition is None:
        target_condition = [name for name in model.conditions if name not in sources]
        if not target_condition:
            raise ValueError(
                "the images are of all conditions. Choose some, source_condition=... or indices=..., or "
                "name what to predict, target_condition=..."
            )
    targets = (
        list(target_condition) if is_list_of_conditions(target_condition) else [target_condition]
    )
    drawn = model.get_transferred_images(
        adata, targets, source_condition=source_condition, indices=chosen, estimate=estimate
    )
    rows = [(_joined(sources), model.get_images(adata, chosen))]
    for target, images in zip(targets, drawn, strict=True):
        rows.append((f"{target}, predicted", images))
        if observed is not None:
            column = check_obs_column(observed, "observed: condition_key", condition_key(model))
            real = np.flatnonzero(column == target)
            if len(real) > 0:
                shown = model.get_images(observed, _spread(real, n_images))
                rows.append((f"{target}, observed", shown))
    return _draw(rows, [], title, Output(ax, show, save, return_fig))


def interpolated_images(
    model: ImageTRVAE,
    adata: AnnData | None = None,
    target_condition: Any = None,
    *,
    source_condition: Any = None,
    indices: Sequence[int] | Sequence[bool] | None = None,
    n_images: int = 5,
    n_steps: int = 7,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Images, one per row, interpolated from their own condition to another one.

    Parameters
    ----------
    model
        A trained :class:`~trvae.ImageTRVAE`.
    adata, target_condition, source_condition, indices, n_steps
        See :meth:`trvae.ImageTRVAE.get_interpolated_images`: images, conditions and number of
        steps.
    n_images, title, ax, show, save, return_fig
        See :func:`transferred_images`: number of images, title, and what to do with the figure.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        See :meth:`trvae.ImageTRVAE.get_interpolated_images`: images or conditions that don't fit
        the model. Also if images are neither grey nor RGB nor RGBA.
    """
    adata, chosen, sources = _chosen(model, adata, source_condition, indices, n_images)
    steps = model.get_interpolated_images(
        adata, target_condition, source_condition=source_condition, indices=chosen, n_steps=n_steps
    )
    rows = [("", row) for row in np.stack([model.get_images(adata, chosen), *steps], axis=1)]
    columns = ["given", _joined(sources), *[""] * (n_steps - 2), str(target_condition)]
    return _draw(rows, columns, title, Output(ax, show, save, return_fig))


def _chosen(model, adata, source, indices, n_images) -> tuple[AnnData, list[int], list]:
    """Return the AnnData, the positions of the images to show in it, and their conditions."""
    check_is_one_model(model, "images")
    if not hasattr(model, "image_shape"):
        raise ValueError(
            f"expected a model of images such as ImageTRVAE, got {type(model).__name__}"
        )
    check_arguments(locals(), {"n_images": POSITIVE_INTEGER})
    adata = cells_to_plot(model, adata)
    positions = cell_positions(indices, adata.n_obs)
    if condition_key(model) not in adata.obs:
        return adata, _spread(positions, n_images), [source]
    conditions = adata.obs[condition_key(model)]
    if source is not None and (conditions.iloc[positions] == source).any():
        positions = positions[(conditions.iloc[positions] == source).to_numpy()]
    chosen = _spread(positions, n_images)
    return adata, chosen, list(conditions.iloc[chosen].unique())


def _spread(positions: np.ndarray, n: int) -> list[int]:
    """Return at most ``n`` of the positions, evenly spaced."""
    places = np.linspace(0, len(positions) - 1, min(n, len(positions)))
    return positions[places.round().astype(int)].tolist()


def _joined(conditions: list) -> str:
    return ", ".join(map(str, conditions))


def _draw(
    named: list[tuple[str, np.ndarray]], columns: list[str], title: str | None, output: Output
) -> Any:
    """Draw rows of images, each ``n_images x height x width x n_channels``, as one image."""
    names, rows = zip(*named, strict=True)
    height, width, n_channels = rows[0].shape[1:]
    if n_channels not in (1, 3, 4):
        raise ValueError(f"expected 1 (grey), 3 (RGB) or 4 (RGBA) channels, got {n_channels}.")
    white = 255 if rows[0].dtype.kind in "ui" else 1
    gap = max(1, round(0.08 * max(height, width)))
    n_rows, n_columns = len(rows), max(map(len, rows))
    # Transparent where there is no image.
    tiles = np.zeros((n_rows, n_columns, height + gap, width + gap, 4), dtype=np.float32)
    for row, images in zip(tiles, rows, strict=True):
        row[: len(images), :height, :width, 3] = 1
        row[: len(images), :height, :width, : max(n_channels, 3)] = images / white
    sheet = np.concatenate(np.concatenate(tiles, axis=1), axis=1)[:-gap, :-gap]
    size = (_NAMES + n_columns * _IMAGE * width / height, _IMAGE * (n_rows + 1))
    (ax,) = output.axes(panel_size=size)
    ax.imshow(sheet, interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=SMALL_FONT)
    ax.set_yticks(np.arange(n_rows) * (height + gap) + height / 2, names)
    ax.set_xticks(np.arange(len(columns)) * (width + gap) + width / 2, columns)
    ax.set_title(title or "", fontsize=SMALL_FONT + 1)
    return output.finish([ax])
