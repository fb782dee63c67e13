"""Faces with attributes (Liu et al. 2015), from the user's own copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from trvae._utils._arguments import check_positive_integer, check_seed, join_names
from trvae.datasets._images import images_as_anndata, read_images

if TYPE_CHECKING:
    from anndata import AnnData

_IMAGES = "img_align_celeba"
_ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")


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
    """Faces of celebrities, from a copy of CelebA on this machine. Nothing is downloaded.

    Parameters
    ----------
    root
        Folder with ``img_align_celeba/*.jpg`` and ``list_attr_celeba.txt`` (or ``.csv``).
    attribute
        The attribute that is to be the condition.
    group
        The attribute that is to be the label.
    size
        Height and width of the images, which are cut to a square and scaled, in pixels.
    n
        Read that many images, chosen at random. By default all that are there.
    seed
        Seed of that choice.
    progress_bar
        Whether to show one.

    Returns
    -------
    AnnData of integers from 0 to 255, ``n_images x (size * size * 3)``, with ``condition``, such
    as ``"Smiling"`` or ``"not Smiling"``, ``label``, such as ``"Male"`` or ``"not Male"``, and all
    attributes (true or false) in ``obs``, and ``image_shape`` in ``uns``.

    Raises
    ------
    FileNotFoundError
        If the images or the attributes are not there.
    ValueError
        If there is no such attribute, a number is not one of those allowed, the file of attributes
        is not as CelebA's, or an image can't be read.

    References
    ----------
    Liu, Luo, Wang & Tang, *ICCV* (2015).
    """
    root = Path(root)
    check_positive_integer("size", size)
    check_seed(seed)
    attributes = _read_attributes(root)
    for argument, name in {"attribute": attribute, "group": group}.items():
        if name not in attributes:
            raise ValueError(
                f"{argument} {name!r} is not one of CelebA's: {join_names(attributes.columns)}."
            )
    folder = root / _IMAGES
    present = {path.name for path in folder.glob("*.jpg")}
    attributes = attributes[attributes.index.isin(present)]
    if attributes.empty:
        raise FileNotFoundError(f"There are no images with attributes in {folder}.")
    if n is not None:
        check_positive_integer("n", n)
        chosen = np.random.default_rng(seed).permutation(len(attributes))[:n]
        attributes = attributes.iloc[np.sort(chosen)]
    images = read_images(
        [folder / name for name in attributes.index], size, progress_bar=progress_bar
    )
    obs = attributes.assign(
        condition=_named(attributes[attribute]), label=_named(attributes[group])
    )
    return images_as_anndata(images, obs)


def _named(values: pd.Series) -> pd.Categorical:
    names = [f"not {values.name}", str(values.name)]
    return pd.Categorical.from_codes(values.to_numpy(dtype=int), categories=names)


def _read_attributes(root: Path) -> pd.DataFrame:
    """Whether each image has each attribute."""
    path = next((root / name for name in _ATTRIBUTES if (root / name).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"There is neither {join_names(_ATTRIBUTES)} in {root}. CelebA is at "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        )
    if path.suffix == ".csv":
        table = pd.read_csv(path, index_col=0)
    else:
        # The first line tells the number of images, the second the attributes.
        table = pd.read_csv(path, sep=r"\s+", skiprows=1)
    if not np.isin(table.to_numpy(), [-1, 1]).all():
        raise ValueError(f"{path} has values other than 1 and -1, which CelebA's has not.")
    return table == 1
