"""Handwritten digits with thin, normal and thick strokes."""

from __future__ import annotations

import gzip
import zipfile
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from tqdm.auto import tqdm

from trvae._utils._arguments import NONE, POSITIVE_INTEGER, SEED, check_arguments
from trvae.datasets._images import images_as_anndata
from trvae.datasets._strokes import thicker, thinner

_CHANGES = {"normal": np.copy, "thin": thinner, "thick": thicker}
_NPZ = "mnist.npz"
_RULES = {"n": POSITIVE_INTEGER | NONE, "seed": SEED}


def stroke_digits(
    *,
    n: int | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> AnnData:
    """Handwritten digits of MNIST, a third each with normal, thin and thick strokes.

    Every digit is under one condition only. As in Morpho-MNIST, strokes are made 70 % thinner or
    100 % thicker by erosion or dilation at four times the size.

    Parameters
    ----------
    n
        Number of images to make from the copy in ``root``, chosen at random. By default all 70,000.
    root
        Folder with a copy of MNIST: ``mnist.npz``, or the four original ``idx`` files, gzipped or
        not. By default the 12,000 digits that ship with the package are returned.
    seed
        Seed of the choice of images and of their conditions.
    progress_bar
        Whether to show a progress bar while images are made.

    Returns
    -------
    AnnData of integers from 0 to 255, ``n_images x (28 * 28)``, with ``condition`` (``"normal"``,
    ``"thin"`` or ``"thick"``) and ``digit`` in ``obs`` and ``image_shape``, ``(28, 28, 1)``, in
    ``uns``.

    Raises
    ------
    FileNotFoundError
        If ``root`` has no copy of MNIST.
    ImportError
        If ``root`` is given and scikit-image is not installed.
    ValueError
        If ``n`` is given without ``root`` or exceeds the number of images, a number is out of range,
        or ``mnist.npz`` lacks MNIST's arrays.

    Notes
    -----
    MNIST is the copyright of Yann LeCun and Corinna Cortes, under CC BY-SA 3.0; so are the digits
    that ship with the package.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, *Proceedings of the IEEE* 86, 2278 (1998); Castro, Tan, Kainz,
    Konukoglu & Glocker, *JMLR* 20, 178 (2019), section 3.2.
    """
    check_arguments(locals(), _RULES)
    if root is None:
        if n is not None:
            raise ValueError(f"n={n} needs a copy of MNIST to make the images from: root=...")
        with as_file(files("trvae.datasets") / "stroke_digits.h5ad") as path:
            return read_h5ad(path)
    images, digits = _read_mnist(Path(root))
    if n is not None and n > len(images):
        raise ValueError(f"n={n}, but there are {len(images)} images in {root}.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(images))[:n])
    codes = rng.permutation(np.arange(len(chosen)) % len(_CHANGES))
    changes = list(_CHANGES.values())
    bar = tqdm(chosen, desc="Changing strokes", disable=not progress_bar)
    changed = np.stack([changes[code](images[i]) for code, i in zip(codes, bar, strict=True)])
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(codes, categories=list(_CHANGES)),
            "digit": pd.Categorical(digits[chosen].astype(str)),
        },
        index=[f"mnist_{i}" for i in chosen],
    )
    return images_as_anndata(changed[..., None], obs)


def _read_mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images, ``70,000 x 28 x 28``, and their digits, ``70,000``; the training set first."""
    if (root / _NPZ).exists():
        try:
            with np.load(root / _NPZ) as arrays:
                images, digits = (
                    np.concatenate([arrays[f"{name}_train"], arrays[f"{name}_test"]])
                    for name in "xy"
                )
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{root / _NPZ} lacks MNIST's arrays: {error}") from error
    else:
        images, digits = (
            np.concatenate([_read_idx(root, f"{part}-{name}-ubyte") for part in ("train", "t10k")])
            for name in ("images-idx3", "labels-idx1")
        )
    return images, digits


def _read_idx(root: Path, name: str) -> np.ndarray:
    """Bytes in the format at http://yann.lecun.com/exdb/mnist, whose header has the shape."""
    for path, open_file in ((root / name, open), (root / f"{name}.gz", gzip.open)):
        if path.exists():
            with open_file(path, "rb") as file:
                content = file.read()
            shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
            return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    raise FileNotFoundError(f"There is neither {_NPZ} nor {name} (or {name}.gz) in {root}.")
