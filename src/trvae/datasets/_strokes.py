"""Drawings with thinner or thicker strokes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trvae.metrics._strokes import SCALE, import_skimage, strokes, thickness

if TYPE_CHECKING:
    from collections.abc import Callable


def thinner(image: np.ndarray) -> np.ndarray:
    """Reduce the thickness of the strokes by 70 %.

    The drawing is light on dark, integers from 0 to 255, ``height x width``; see Castro et al.,
    *JMLR* 20, 178 (2019), section 3.2.
    """
    return _redrawn(image, import_skimage().morphology.erosion, 0.7)


def thicker(image: np.ndarray) -> np.ndarray:
    """Double the thickness of the strokes; see :func:`thinner`: the drawing."""
    return _redrawn(image, import_skimage().morphology.dilation, 1.0)


def _redrawn(image: np.ndarray, change: Callable, amount: float) -> np.ndarray:
    skimage, drawn = import_skimage(), strokes(image)
    radius = int(amount * np.nan_to_num(thickness(drawn)) / 2)
    changed = change(drawn, skimage.morphology.disk(radius)).astype(float)
    smaller = skimage.transform.pyramid_reduce(changed, downscale=SCALE, order=3)
    return (255 * smaller.clip(0, 1)).round().astype(np.uint8)
