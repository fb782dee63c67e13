"""The ``trvae`` command: a thin shell over the Python API."""

from trvae.cli import _commands, _demo  # noqa: F401
from trvae.cli._options import app

__all__ = ["app"]
