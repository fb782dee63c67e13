"""Transfer variational autoencoder (trVAE) for scvi-tools."""

import warnings
from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# Names are in __init__.pyi. Each is imported when it is first used, so that the command line answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("trvae-tools")

try:
    _other = version("trVAE")
except PackageNotFoundError:
    pass
else:
    warnings.warn(
        f"The package trVAE {_other} (Keras) is installed, too. Both are imported as trvae and overwrite each "
        "other's files. Repair it with: pip uninstall trVAE trvae-tools, and install trvae-tools again.",
        stacklevel=2,
    )
