"""Thickness of the strokes of drawings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import distance_transform_edt

if TYPE_CHECKING:
    pass


# Castro et al. measure and change drawings at four times their size.
_SCALE = 4


def stroke_thickness(images: np.ndarray) -> np.ndarray:
    """Mean thickness of the strokes in each of several drawings.

    Twice the mean distance of the strokes' skeleton from the background, where the drawing is at
    least half as bright as can be.

    Parameters
    ----------
    images
        Light on dark: integers from 0 to 255 or numbers from 0 to 1, ``n_images x height x width``
        with or without a channel, ``x 1``.

    Returns
    -------
    ``n_images``, in pixels; NaN for a drawing that is nowhere as bright.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    ValueError
        If the images don't have one channel.

    References
    ----------
    Castro, Tan, Kainz, Konukoglu & Glocker, *JMLR* 20, 178 (2019), section 3.1.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3:
        raise ValueError(
            f"images of shape {images.shape} are not of n_images x height x width (x 1)."
        )
    return np.array([_thickness(_enlarged(image)) for image in images]) / _SCALE


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Where the drawing is bright, at a larger scale."""
    _morphology()
    from skimage.transform import resize

    largest = 255.0 if image.dtype.kind in "ui" else 1.0
    shape = [_SCALE * size for size in image.shape]
    return resize(image / largest, shape, order=1, anti_aliasing=False) > 0.5


def _thickness(drawn: np.ndarray) -> float:
    """Mean thickness of what is drawn, in pixels, or NaN if that is nothing."""
    skeleton = _morphology().skeletonize(drawn)
    return 2 * distance_transform_edt(drawn)[skeleton].mean() if skeleton.any() else np.nan


def _morphology():
    try:
        from skimage import morphology
    except ImportError as error:
        raise ImportError(
            "Drawings are measured with scikit-image: pip install 'trvae-tools[images]'."
        ) from error
    return morphology
