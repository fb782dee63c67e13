"""Example data, and readers of images."""

from trvae.datasets._celeba import celeba
from trvae.datasets._images import image_folder
from trvae.datasets._kang18 import kang18
from trvae.datasets._simulated import simulated
from trvae.datasets._stroke_digits import stroke_digits

__all__ = ["celeba", "image_folder", "kang18", "simulated", "stroke_digits"]
