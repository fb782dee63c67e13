"""Transfer variational autoencoder (trVAE) for scvi-tools."""

from importlib.metadata import version

from trvae import data, datasets, metrics, model, module, pl, train
from trvae.evaluation._evaluate import evaluate
from trvae.evaluation._methods import TransferMethod, TRVAEMethod
from trvae.model._ensemble import TRVAEEnsemble
from trvae.model._image_trvae import ImageTRVAE
from trvae.model._trvae import TRVAE
from trvae.module._expression import TRVAEModule
from trvae.module._images import ImageTRVAEModule

__all__ = [
    "ImageTRVAE",
    "ImageTRVAEModule",
    "TRVAE",
    "TRVAEEnsemble",
    "TRVAEMethod",
    "TRVAEModule",
    "TransferMethod",
    "data",
    "datasets",
    "evaluate",
    "metrics",
    "model",
    "module",
    "pl",
    "train",
]
__version__ = version("trvae-tools")
