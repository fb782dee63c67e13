"""Models, as people use them."""

from trvae.model._base import BaseTRVAE
from trvae.model._ensemble import TRVAEEnsemble
from trvae.model._image_trvae import ImageTRVAE
from trvae.model._trvae import TRVAE

__all__ = ["TRVAE", "BaseTRVAE", "ImageTRVAE", "TRVAEEnsemble"]
