"""Users' data: what is registered of them, and what is checked first."""

from trvae.data._fields import InOrderDataManager

__all__ = ["InOrderDataManager"]
