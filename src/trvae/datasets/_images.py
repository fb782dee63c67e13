"""Images as an AnnData: one row per image, one column per pixel and channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image
from tqdm.auto import tqdm

from trvae._utils._arguments import NONE, NONNEGATIVE_INTEGER, POSITIVE_INTEGER, check_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_RULES = {
    "condition": NONNEGATIVE_INTEGER,
    "label": NONNEGATIVE_INTEGER | NONE,
    "size": POSITIVE_INTEGER | NONE,
}


def image_folder(
    root: str | Path,
    *,
    condition: int = 0,
    label: int | None = None,
    size: int | None = None,
    progress_bar: bool = True,
) -> AnnData:
    """Read images from folders that are named by condition and label: ``root/thick/7/0001.png``.

    Parameters
    ----------
    root
        Folder with a folder for each condition. Conditions and labels may be nested deeper.
    condition
        Level below ``root`` of the folders that name the condition: 0 for those in ``root``.
    label
        Level below ``root`` of the folders that name the label. By default there are no labels.
    size
        Cut the largest square from the middle of each image and scale it to ``size x size``
        pixels. By default images keep their size.
    progress_bar
        Whether to show a progress bar.

    Returns
    -------
    AnnData of integers from 0 to 255, ``n_images x (height * width * n_channels)``, with
    ``condition`` (and ``label``) in ``obs`` and ``image_shape`` in ``uns``. Images are named by
    their paths and in their order. There is one channel if all images are grey, otherwise three.

    Raises
    ------
    FileNotFoundError
        If ``root`` is not a folder, or has no images.
    ValueError
        If a number is out of range, an image can't be read, is nested less deep than ``condition``
        or ``label``, or differs from the others in shape and ``size`` is not given.
    """
    check_arguments(locals(), _RULES)
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"There are no images ({', '.join(_SUFFIXES)}) in {root}.")
    folders = [path.relative_to(root).parts[:-1] for path in paths]
    obs = pd.DataFrame(index=[path.relative_to(root).as_posix() for path in paths])
    levels = {"condition": condition} | ({} if label is None else {"label": label})
    for argument, level in levels.items():
        shallow = [p for p, parts in zip(paths, folders, strict=True) if level >= len(parts)]
        if shallow:
            raise ValueError(
                f"{argument}={level}, but {shallow[0]} has no folder at that level below {root}."
            )
        obs[argument] = pd.Categorical([parts[level] for parts in folders])
    return images_as_anndata(read_images(paths, size, progress_bar=progress_bar), obs)


def read_images(paths: Sequence[Path], size: int | None, *, progress_bar: bool) -> np.ndarray:
    """Read images of the same height and width, ``n_images x height x width x n_channels``."""
    images: list[np.ndarray] = []
    for path in tqdm(paths, desc="Reading images", disable=not progress_bar):
        image = _read_image(path, size)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, {paths[0]} has "
                f"{images[0].shape[0]} x {images[0].shape[1]}. Give the size to scale them to."
            )
        images.append(image)
    n_channels = max(image.shape[-1] for image in images)
    shape = (*images[0].shape[:2], n_channels)
    return np.stack([np.broadcast_to(image, shape) for image in images])


def _read_image(path: Path, size: int | None) -> np.ndarray:
    """Integers, ``height x width x 1`` if the image is grey, otherwise ``x 3``."""
    try:
        with Image.open(path) as file:
            image = file.convert("L" if file.mode in ("1", "L", "LA") else "RGB")
    except OSError as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from error
    if size is not None:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.atleast_3d(np.asarray(image))


def images_as_anndata(images: np.ndarray, obs: pd.DataFrame) -> AnnData:
    """Flatten images, ``n_images x height x width x n_channels``, and keep their shape in ``uns``."""
    shape = images.shape[1:]
    pixels = np.ndindex(shape if shape[-1] > 1 else shape[:2])
    return AnnData(
        images.reshape(len(images), -1),
        obs=obs,
        var=pd.DataFrame(index=["_".join(map(str, pixel)) for pixel in pixels]),
        uns={"image_shape": np.array(shape)},
    )
