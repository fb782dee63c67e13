"""Images in rows and columns: transferred to other conditions, or on the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trvae._utils._arguments import check_positive_integer
from trvae.data._checks import cell_positions, is_list_of_conditions
from trvae.pl._models import cells_to_plot, check_is_one_model, condition_key
from trvae.pl._output import SMALL_FONT, Output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trvae import ImageTRVAE
    from trvae.counterfactual._residual import Estimate

_INCHES_AN_IMAGE = 0.6
_INCHES_OF_NAMES = 1.2
# Between images, as a share of their size.
_GAP = 0.08
_CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}


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
    """Images as they are, and below each how it would be under other conditions.

    Parameters
    ----------
    model
        The model.
    adata, source_condition, indices, estimate
        As in :meth:`trvae.ImageTRVAE.transfer`.
    target_condition
        A condition or a list of them, one a row; by default all that the images are not under.
    observed
        Real images of the same kind. Below each row, some of the same condition are shown, if
        there are any; they are others, not what the images above should look like.
    n_images
        How many to show at most, evenly spread over those chosen.
    title, ax, show, save, return_fig
        As in :func:`mean_scatter`.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        As :meth:`trvae.ImageTRVAE.transfer`, or if images are neither grey nor RGB nor RGBA.
    """
    adata, chosen, sources = _chosen(model, adata, source_condition, indices, n_images)
    if target_condition is None:
        target_condition = [one for one in model.conditions if one not in sources]
    targets = (
        list(target_condition) if is_list_of_conditions(target_condition) else [target_condition]
    )
    drawn = model.get_transferred_images(
        adata, targets, source_condition=source_condition, indices=chosen, estimate=estimate
    )
    rows = {_names(sources): model.get_images(adata, chosen)}
    for target, images in zip(targets, drawn, strict=True):
        rows[f"{target}, predicted"] = images
        if observed is not None:
            real = np.flatnonzero(observed.obs[condition_key(model)] == target)
            if len(real) > 0:
                rows[f"{target}, observed"] = model.get_images(observed, _spread(real, n_images))
    output = Output(ax, show, save, return_fig)
    return _draw(rows, [], title, output)


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
    """Images, one a row, on the way from their own condition to another one.

    Parameters
    ----------
    model
        The model.
    adata, target_condition, source_condition, indices, n_steps
        As in :meth:`trvae.ImageTRVAE.get_interpolated_images`.
    n_images, title, ax, show, save, return_fig
        As in :func:`transferred_images`.

    Returns
    -------
    The axes, or the figure if ``return_fig``, or nothing if the figure is shown.

    Raises
    ------
    ValueError
        As :meth:`trvae.ImageTRVAE.get_interpolated_images`, or if images are neither grey nor RGB
        nor RGBA.
    """
    adata, chosen, sources = _chosen(model, adata, source_condition, indices, n_images)
    steps = model.get_interpolated_images(
        adata,
        target_condition,
        source_condition=source_condition,
        indices=chosen,
        n_steps=n_steps,
    )
    images = np.concatenate([model.get_images(adata, chosen)[None], steps])
    rows = dict(enumerate(images.swapaxes(0, 1)))
    columns = ["given", _names(sources), *[""] * (n_steps - 2), str(target_condition)]
    output = Output(ax, show, save, return_fig)
    return _draw(rows, columns, title, output)


def _chosen(model, adata, source, indices, n_images) -> tuple[AnnData, list[int], list]:
    """The AnnData, positions of the images to show in it, and the conditions that they are under."""
    check_is_one_model(model, "images")
    if not hasattr(model, "image_shape"):
        raise ValueError(f"{type(model).__name__} is no model of images, such as ImageTRVAE.")
    check_positive_integer("n_images", n_images)
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
    """At most ``n`` of them, evenly spread."""
    places = np.linspace(0, len(positions) - 1, min(n, len(positions)))
    return positions[places.round().astype(int)].tolist()


def _names(conditions: list) -> str:
    return ", ".join(map(str, conditions))


def _draw(rows: dict, columns: list[str], title: str | None, output: Output) -> Any:
    images_of_row = next(iter(rows.values()))
    height, width, n_channels = images_of_row.shape[1:]
    white = 255 if images_of_row.dtype.kind in "ui" else 1
    if n_channels not in _CHANNELS:
        allowed = ", ".join(f"{n} ({name})" for n, name in _CHANNELS.items())
        raise ValueError(
            f"Images of {n_channels} channels can't be drawn, but those of {allowed}."
        )
    gap = max(1, round(_GAP * max(height, width)))
    n_rows, n_columns = len(rows), max(map(len, rows.values()))
    # Transparent where there is no image.
    sheet = np.zeros(
        (n_rows * (height + gap) - gap, n_columns * (width + gap) - gap, 4), dtype=np.float32
    )
    for i, images in enumerate(rows.values()):
        for j, image in enumerate(images):
            top, left = i * (height + gap), j * (width + gap)
            place = sheet[top : top + height, left : left + width]
            place[..., 3] = 1
            place[..., : max(n_channels, 3)] = image / white
    size = (
        _INCHES_OF_NAMES + n_columns * _INCHES_AN_IMAGE * width / height,
        _INCHES_AN_IMAGE * (n_rows + 1),
    )
    (ax,) = output.axes(panel_size=size)
    ax.imshow(sheet, interpolation="nearest")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=SMALL_FONT)
    names = [name if isinstance(name, str) else "" for name in rows]
    ax.set_yticks(np.arange(n_rows) * (height + gap) + height / 2, names)
    ax.set_xticks((np.arange(n_columns) * (width + gap) + width / 2)[: len(columns)], columns)
    ax.set_title(title or "", fontsize=SMALL_FONT + 1)
    return output.finish([ax])
