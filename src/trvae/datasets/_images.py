"""Images as an AnnData: one row an image, one column a pixel (and channel)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from trvae._utils._arguments import check_positive_integer

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def images_as_anndata(images: np.ndarray, obs: pd.DataFrame) -> AnnData:
    """Put images into an AnnData.

    Parameters
    ----------
    images
        ``n_images x height x width x n_channels``.
    obs
        What is known of them, ``n_images`` rows.

    Returns
    -------
    AnnData with a row an image in ``X``, ``n_images x (height * width * n_channels)``, and its
    shape, ``(height, width, n_channels)``, in ``uns["image_shape"]``.
    """
    n_images, *shape = images.shape
    height, width, n_channels = shape
    names = [
        f"{row}_{column}" + (f"_{channel}" if n_channels > 1 else "")
        for row in range(height)
        for column in range(width)
        for channel in range(n_channels)
    ]
    return AnnData(
        images.reshape(n_images, -1),
        obs=obs,
        var=pd.DataFrame(index=names),
        uns={"image_shape": np.array(shape)},
    )


def image_folder(
    root: str | Path,
    *,
    condition: int = 0,
    label: int | None = None,
    size: int | None = None,
    progress_bar: bool = True,
) -> AnnData:
    """Read images whose folders tell what they are, as in ``root/thick/7/0001.png``.

    Parameters
    ----------
    root
        Folder with a folder for each condition, or deeper.
    condition
        Which of the folders below ``root`` names the condition: 0 is the first.
    label
        Which of them names the label. By default there are no labels.
    size
        Cut the largest square from the middle of each image and scale it to ``size x size``. By
        default images are taken as they are.
    progress_bar
        Whether to show one.

    Returns
    -------
    AnnData of integers from 0 to 255, ``n_images x (height * width * n_channels)``, with
    ``condition`` (and ``label``) in ``obs`` and ``image_shape`` in ``uns``. Images are in the
    order of their paths, which are their names. If all are grey there is one channel, else three.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no image in it.
    ValueError
        If an image can't be read, lies less deep than the folders that are to name it, or has
        another shape than the others and no ``size`` is given.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"There are no images ({', '.join(_SUFFIXES)}) in {root}.")
    levels = {"condition": condition} | ({} if label is None else {"label": label})
    folders = [path.relative_to(root).parts[:-1] for path in paths]
    for argument, level in levels.items():
        for path, parts in zip(paths, folders, strict=True):
            if not 0 <= level < len(parts):
                raise ValueError(
                    f"{argument}={level}, but {path} lies in {len(parts)} folders below {root}."
                )
    obs = pd.DataFrame(
        {
            name: pd.Categorical([parts[level] for parts in folders])
            for name, level in levels.items()
        },
        index=[path.relative_to(root).as_posix() for path in paths],
    )
    return images_as_anndata(read_images(paths, size, progress_bar=progress_bar), obs)


def read_images(
    paths: Sequence[Path], size: int | None = None, *, progress_bar: bool = True
) -> np.ndarray:
    """Read images of one shape.

    Parameters
    ----------
    paths, size, progress_bar
        See :func:`image_folder`.

    Returns
    -------
    Integers from 0 to 255, ``n_images x height x width x n_channels``.

    Raises
    ------
    ValueError
        See :func:`image_folder`.
    """
    if size is not None:
        check_positive_integer("size", size)
    images: list[np.ndarray] = []
    for path in tqdm(paths, desc="Reading images", disable=not progress_bar):
        image = _read_image(path, size)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, {paths[0]} has "
                f"{images[0].shape[0]} x {images[0].shape[1]}. Give the size that they are to have."
            )
        images.append(image)
    n_channels = max(image.shape[-1] for image in images)
    stacked = np.empty((len(images), *images[0].shape[:2], n_channels), dtype=np.uint8)
    for slot, image in zip(stacked, images, strict=True):
        slot[:] = image
    return stacked


def _read_image(path: Path, size: int | None) -> np.ndarray:
    """Integers, ``height x width x 1`` if the image is grey, else ``x 3``."""
    try:
        with Image.open(path) as file:
            image = file.convert("L" if file.mode in ("1", "L", "LA") else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from error
    if size is not None:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.resize(
            (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
        )
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
