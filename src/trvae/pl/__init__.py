"""Plots of predictions, of representations and of training."""

from trvae.pl._by_label import response_by_label
from trvae.pl._history import history
from trvae.pl._images import interpolated_images, transferred_images
from trvae.pl._scatter import mean_scatter, response
from trvae.pl._umap import umap

__all__ = [
    "history",
    "interpolated_images",
    "mean_scatter",
    "response",
    "response_by_label",
    "transferred_images",
    "umap",
]
