from . import data, datasets, metrics, model, module, pl, train
from .evaluation._evaluate import evaluate
from .evaluation._methods import TransferMethod, TRVAEMethod
from .model._ensemble import TRVAEEnsemble
from .model._image_trvae import ImageTRVAE
from .model._trvae import TRVAE
from .module._expression import TRVAEModule
from .module._images import ImageTRVAEModule

__version__: str

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
