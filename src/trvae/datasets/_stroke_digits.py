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

from trvae._utils._arguments import check_positive_integer, check_seed
from trvae.datasets._images import images_as_anndata
from trvae.datasets._strokes import thicker, thinner

_CONDITIONS = ("normal", "thin", "thick")
_NPZ = "mnist.npz"
_IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def stroke_digits(
    *,
    n: int | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> AnnData:
    """Handwritten digits of MNIST, a third each with normal, thin and thick strokes.

    No digit is there under two conditions. As in Morpho-MNIST, strokes are made thinner by 70 %
    and thicker by 100 % of what they were, by erosion and dilation at four times the size.

    Parameters
    ----------
    n
        Number of images to make from the copy in ``root``, drawn at random. By default all 70,000.
    root
        Folder with a copy of MNIST: ``mnist.npz``, or the four original ``idx`` files, gzipped or
        not. By default the 12,000 digits that ship with the package are returned.
    seed
        Seed of which images are taken and of their conditions.
    progress_bar
        Whether to show one while images are made.

    Returns
    -------
    AnnData of integers from 0 to 255, ``n_images x (28 * 28)``, with ``condition`` (``"normal"``,
    ``"thin"`` or ``"thick"``) and ``digit`` in ``obs`` and ``image_shape``, ``(28, 28, 1)``, in
    ``uns``.

    Raises
    ------
    FileNotFoundError
        If there is no copy of MNIST in ``root``.
    ImportError
        If ``root`` is given and scikit-image is not installed.
    ValueError
        If ``n`` is given without ``root`` or is more than there are, a number is not one of those
        allowed, or ``mnist.npz`` does not have MNIST's arrays.

    Notes
    -----
    MNIST is the copyright of Yann LeCun and Corinna Cortes, under CC BY-SA 3.0; so are the digits
    that ship with the package.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, *Proceedings of the IEEE* 86, 2278 (1998); Castro, Tan, Kainz,
    Konukoglu & Glocker, *JMLR* 20, 178 (2019), section 3.2.
    """
    if root is None:
        if n is not None:
            raise ValueError(f"n={n} needs a copy of MNIST to make the images from: root=...")
        with as_file(files("trvae.datasets") / "stroke_digits.h5ad") as path:
            return read_h5ad(path)
    images, digits = _read_mnist(Path(root))
    check_seed(seed)
    if n is not None:
        check_positive_integer("n", n)
        if n > len(images):
            raise ValueError(f"n={n}, but there are {len(images)} images in {root}.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(images))[:n])
    codes = rng.permutation(np.arange(len(chosen)) % len(_CONDITIONS))
    changes = (np.copy, thinner, thicker)
    changed = np.stack(
        [
            changes[code](images[i])
            for code, i in tqdm(
                list(zip(codes, chosen, strict=True)),
                desc="Changing strokes",
                disable=not progress_bar,
            )
        ]
    )
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(codes, categories=list(_CONDITIONS)),
            "digit": pd.Categorical(digits[chosen].astype(str)),
        },
        index=[f"mnist_{i}" for i in chosen],
    )
    return images_as_anndata(changed[..., None], obs)


def _read_mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All images, ``70,000 x 28 x 28``, and their digits: those of training come first."""
    if (root / _NPZ).exists():
        try:
            with np.load(root / _NPZ) as arrays:
                return tuple(
                    np.concatenate([arrays[f"{name}_train"], arrays[f"{name}_test"]])
                    for name in "xy"
                )  # type: ignore[return-value]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{root / _NPZ} does not have MNIST's arrays: {error}") from error
    parts = [[_read_idx(root, name) for name in names] for names in _IDX.values()]
    images, digits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return images, digits


def _read_idx(root: Path, name: str) -> np.ndarray:
    """An array of bytes, in the format at http://yann.lecun.com/exdb/mnist."""
    plain, zipped = root / name, root / f"{name}.gz"
    if plain.exists():
        content = plain.read_bytes()
    elif zipped.exists():
        content = gzip.decompress(zipped.read_bytes())
    else:
        raise FileNotFoundError(f"There is neither {_NPZ} nor {name} (or {name}.gz) in {root}.")
    n_dimensions = content[3]
    header = np.frombuffer(content, ">i4", 1 + n_dimensions)
    return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(header[1:])
