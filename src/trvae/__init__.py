"""Transfer variational autoencoder (trVAE) for scvi-tools."""

from importlib.metadata import version

from trvae import datasets, metrics, pl
from trvae._ensemble import TRVAEEnsemble
from trvae._evaluate import TransferMethod, TRVAEMethod, evaluate
from trvae._image_model import ImageTRVAE
from trvae._image_module import ImageTRVAEModule
from trvae._model import TRVAE
from trvae._module import TRVAEModule

__all__ = [
    "ImageTRVAE",
    "ImageTRVAEModule",
    "TRVAE",
    "TRVAEEnsemble",
    "TRVAEMethod",
    "TRVAEModule",
    "TransferMethod",
    "datasets",
    "evaluate",
    "metrics",
    "pl",
]
__version__ = version("trvae-tools")
