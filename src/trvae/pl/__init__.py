"""Plots of predictions."""

from trvae.pl._scatter import mean_scatter, response

__all__ = ["mean_scatter", "response"]
