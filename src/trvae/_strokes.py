"""How thick the strokes of a drawing are, and drawings made thinner or thicker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import distance_transform_edt

if TYPE_CHECKING:
    from collections.abc import Callable

# Castro et al. measure and change drawings at four times their size.
_SCALE = 4
# How much of the strokes' half thickness is taken off or put on.
_THINNING, _THICKENING = 0.7, 1.0


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


def thinner(image: np.ndarray) -> np.ndarray:
    """Take 70 % off the thickness of a drawing's strokes.

    Parameters
    ----------
    image
        Integers from 0 to 255, light on dark, ``height x width``.

    Returns
    -------
    Of the same type and shape.

    References
    ----------
    Castro et al., *JMLR* 20, 178 (2019), section 3.2.
    """
    return _eroded_or_dilated(image, _morphology().erosion, _THINNING)


def thicker(image: np.ndarray) -> np.ndarray:
    """Double the thickness of a drawing's strokes; see :func:`thinner`."""
    return _eroded_or_dilated(image, _morphology().dilation, _THICKENING)


def _eroded_or_dilated(image: np.ndarray, change: Callable, amount: float) -> np.ndarray:
    from skimage.transform import pyramid_reduce

    drawn = _enlarged(image)
    radius = int(amount * np.nan_to_num(_thickness(drawn)) / 2)
    changed = change(drawn, _morphology().disk(radius)).astype(float)
    smaller = pyramid_reduce(changed, downscale=_SCALE, order=3)
    return (255 * smaller.clip(0, 1)).round().astype(np.uint8)


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
