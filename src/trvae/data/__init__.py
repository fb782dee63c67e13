"""Registration and validation of input."""

from trvae.data._fields import InOrderDataManager

__all__ = ["InOrderDataManager"]
