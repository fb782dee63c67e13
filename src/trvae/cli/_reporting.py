"""What all commands print: tables, a summary as JSON, and errors on one line."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import platform
import re
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from math import isnan
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd

console = Console()

RESULTS = ("figure.png", "predicted.h5ad", "model", "metrics.json")
"""What the commands that evaluate a prediction write to a folder."""

# Arguments of the Python API, by options with another name.
_OPTIONS = {
    "source_condition": "--from",
    "target_condition": "--to",
    "target_conditions": "--to",
    "rna_layer": "--layer",
}


def reporting(command: Callable[..., dict]) -> Callable[..., None]:
    """Print the summary that a command returns as JSON if requested, and errors on one line.

    With ``--json``, standard output has the JSON only.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        # Only progress bars and results should be on the screen. Libraries that are imported later set
        # the levels of their own loggers.
        warnings.filterwarnings("ignore")
        logging.disable(logging.INFO)
        elsewhere = redirect_stdout(sys.stderr) if kwargs["as_json"] else nullcontext()
        try:
            with elsewhere:
                returned = command(*args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            message = _with_options(message, inspect.signature(command).parameters)
            Console(stderr=True).print(
                f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from error
        finally:
            logging.disable(logging.NOTSET)
        if kwargs["as_json"]:
            print(to_json(returned))

    return wrapped


def _with_options(message: str, parameters: Any) -> str:
    """Name arguments of the Python API as the options that the user gave."""
    names = {name: f"--{name.replace('_', '-')}" for name in parameters if "_" in name}
    names |= _OPTIONS
    return re.sub(r"\b[a-z_]+\b(?!')", lambda match: names.get(match[0], match[0]), message)


def check_new(path: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` if there is a file or folder that may not be replaced."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already. Choose another name, or use --overwrite.")


def check_no_results(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` if a folder has results that may not be replaced."""
    for name in RESULTS:
        check_new(folder / name, overwrite)


def is_watched() -> bool:
    """Whether progress is shown in a terminal, not written to a log file."""
    return sys.stderr.isatty()


def print_table(table: pd.DataFrame, title: str) -> None:
    """Print a table of numbers, with the prediction in bold."""
    printed = Table(title=title, box=SIMPLE_HEAD, padding=0)
    printed.add_column("", no_wrap=True)
    for heading in table:
        printed.add_column(heading, justify="right", no_wrap=True)
    for method, row in table.iterrows():
        style = "bold" if method == "prediction" else None
        printed.add_row(str(method), *(f"{value:.3f}" for value in row), style=style)
    console.print(printed)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine the numbers."""
    packages = ("trvae-tools", "scvi-tools", "torch", "anndata", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def to_json(record: dict) -> str:
    """Return a record as JSON, which has neither NaN nor NumPy's scalars."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(held) for key, held in value.items()}
        if isinstance(value, list):
            return [plain(held) for held in value]
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and isnan(value) else value

    return json.dumps(plain(record), indent=2, allow_nan=False, default=str)
