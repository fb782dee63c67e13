"""Thickness of the strokes in drawings."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

# Castro et al. measure and change drawings at four times their size.
SCALE = 4


def stroke_thickness(images: np.ndarray) -> np.ndarray:
    """Mean thickness of the strokes in each drawing.

    The thickness is twice the mean distance of the strokes' skeleton from the background. Strokes
    are where the drawing has at least half the largest possible brightness.

    Parameters
    ----------
    images
        Light on dark: integers from 0 to 255 or numbers from 0 to 1, ``n_images x height x width``
        or ``n_images x height x width x 1``.

    Returns
    -------
    ``n_images``, in pixels; NaN for a drawing without strokes.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    ValueError
        If the images have another shape, such as several channels.

    References
    ----------
    Castro, Tan, Kainz, Konukoglu & Glocker, *JMLR* 20, 178 (2019), section 3.1.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3:
        raise ValueError(
            f"images must be n_images x height x width (x 1), got the shape {images.shape}."
        )
    return np.array([thickness(strokes(image)) for image in images]) / SCALE


def strokes(image: np.ndarray) -> np.ndarray:
    """Whether each pixel of a drawing, enlarged by ``SCALE``, belongs to a stroke."""
    brightest = 255.0 if image.dtype.kind in "ui" else 1.0
    shape = [SCALE * size for size in image.shape]
    resize = import_skimage().transform.resize
    return resize(image / brightest, shape, order=1, anti_aliasing=False) > 0.5


def thickness(drawn: np.ndarray) -> float:
    """Mean thickness of :func:`strokes`, in pixels of the enlarged drawing; NaN without strokes."""
    skeleton = import_skimage().morphology.skeletonize(drawn)
    return 2 * distance_transform_edt(drawn)[skeleton].mean() if skeleton.any() else np.nan


def import_skimage() -> Any:
    """Import scikit-image, an optional dependency."""
    try:
        import skimage
    except ImportError as error:
        raise ImportError(
            "Drawings are measured with scikit-image: pip install 'trvae-tools[images]'."
        ) from error
    return skimage
