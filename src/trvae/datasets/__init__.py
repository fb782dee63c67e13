"""Example data."""

from trvae.datasets._kang18 import kang18
from trvae.datasets._simulated import simulated

__all__ = ["kang18", "simulated"]
