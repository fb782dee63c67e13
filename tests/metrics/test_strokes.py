"""Thickness of strokes."""

import sys

import numpy as np
import pytest

from trvae.metrics import stroke_thickness


def bar(width):
    """A vertical bar that is ``width`` pixels wide."""
    image = np.zeros((28, 28), np.uint8)
    image[3:-3, 10 : 10 + width] = 255
    return image


@pytest.mark.parametrize("width", [2, 4, 6])
def test_thickness_of_a_bar_is_its_width(width):
    image = bar(width)
    images = np.stack([image, image.T, np.roll(image, 3, axis=1)])
    thickness = stroke_thickness(images)
    assert thickness[0] == pytest.approx(width, abs=0.6)
    for same in (images, images / 255.0, images[..., None]):
        np.testing.assert_allclose(stroke_thickness(same), thickness[0], rtol=1e-6)


def test_an_empty_drawing_has_no_thickness():
    assert np.isnan(stroke_thickness(np.zeros((1, 28, 28))))


def test_refuses(monkeypatch):
    with pytest.raises(ValueError, match=r"\(2, 28, 28, 3\)"):
        stroke_thickness(np.zeros((2, 28, 28, 3)))
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"trvae-tools\[images\]"):
        stroke_thickness(bar(2)[None])
