"""Drawings with thinner or thicker strokes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trvae.metrics._strokes import _SCALE, _enlarged, _morphology, _thickness

if TYPE_CHECKING:
    from collections.abc import Callable


# How much of the strokes' half thickness is taken off or put on.
_THINNING, _THICKENING = 0.7, 1.0


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
