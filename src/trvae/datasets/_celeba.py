"""Faces with attributes (Liu et al. 2015), from the user's own copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trvae._utils._arguments import NONE, POSITIVE_INTEGER, SEED, check_arguments, join_names
from trvae.datasets._images import images_as_anndata, read_images

if TYPE_CHECKING:
    from anndata import AnnData

_IMAGES = "img_align_celeba"
_ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_RULES = {"size": POSITIVE_INTEGER, "n": POSITIVE_INTEGER | NONE, "seed": SEED}


def celeba(
    root: str | Path,
    attribute: str = "Smiling",
    group: str = "Male",
    size: int = 64,
    *,
    n: int | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> AnnData:
    """Faces of celebrities, from a local copy of CelebA. Nothing is downloaded.

    Parameters
    ----------
    root
        Folder with ``img_align_celeba/*.jpg`` and ``list_attr_celeba.txt`` (or ``.csv``).
    attribute
        Attribute to use as the condition.
    group
        Attribute to use as the label.
    size
        Height and width of the images in pixels. The largest square is cut from the middle of each
        image and scaled to this size.
    n
        Number of images to read, chosen at random. By default all are read.
    seed
        Seed of this choice.
    progress_bar
        Whether to show a progress bar.

    Returns
    -------
    AnnData of integers from 0 to 255, ``n_images x (size * size * 3)``, with ``condition``, such
    as ``"Smiling"`` or ``"not Smiling"``, ``label``, such as ``"Male"`` or ``"not Male"``, and all
    attributes (true or false) in ``obs``, and ``image_shape`` in ``uns``.

    Raises
    ------
    FileNotFoundError
        If ``root`` lacks the images or the attributes.
    ValueError
        If CelebA has no such attribute, a number is out of range, the attributes have values other
        than 1 and -1, or an image can't be read.

    References
    ----------
    Liu, Luo, Wang & Tang, *ICCV* (2015).
    """
    check_arguments(locals(), _RULES)
    root = Path(root)
    attributes = _read_attributes(root)
    for argument, name in {"attribute": attribute, "group": group}.items():
        if name not in attributes:
            raise ValueError(
                f"{argument} {name!r} is not one of CelebA's: {join_names(attributes.columns)}."
            )
    folder = root / _IMAGES
    present = [path.name for path in folder.glob("*.jpg")]
    attributes = attributes[attributes.index.isin(present)]
    if attributes.empty:
        raise FileNotFoundError(f"There are no images with attributes in {folder}.")
    if n is not None:
        chosen = np.random.default_rng(seed).permutation(len(attributes))[:n]
        attributes = attributes.iloc[np.sort(chosen)]
    paths = [folder / name for name in attributes.index]
    obs = attributes.assign(
        condition=_named(attributes[attribute]), label=_named(attributes[group])
    )
    return images_as_anndata(read_images(paths, size, progress_bar=progress_bar), obs)


def _read_attributes(root: Path) -> pd.DataFrame:
    """Whether each image has each attribute, ``n_images x n_attributes``."""
    path = next((root / name for name in _ATTRIBUTES if (root / name).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"There is neither {' nor '.join(_ATTRIBUTES)} in {root}. CelebA is available from "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        )
    if path.suffix == ".csv":
        table = pd.read_csv(path, index_col=0)
    else:
        # The first line has the number of images, the second the attributes.
        table = pd.read_csv(path, sep=r"\s+", skiprows=1)
    if not table.isin([-1, 1]).all(axis=None):
        raise ValueError(f"{path} has values other than 1 and -1.")
    return table == 1


def _named(values: pd.Series) -> pd.Categorical:
    names = [f"not {values.name}", str(values.name)]
    return pd.Categorical.from_codes(values.to_numpy(dtype=int), categories=names)
