"""Tables, JSON, result files and one-line errors of the command line."""

from __future__ import annotations

import functools
import json
import logging
import platform
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trvae import TRVAE, ImageTRVAE, TRVAEMethod, pl
from trvae.evaluation._split import HeldOut, predict_held_out
from trvae.io._atomic import atomic_write
from trvae.io._hdf5 import write_h5ad

if TYPE_CHECKING:
    from collections.abc import Callable


console = Console()


_SHOWN_METRICS = {
    "r2_mean": "R² of\nmeans",
    "r2_variance": "R² of\nvariances",
    "r2_mean_top": "R² top\ngenes",
    "change": "r of\nchange",
    "rmse": "RMSE",
    "energy_distance": "energy\ndistance",
}


def reporting(command: Callable[..., dict]) -> Callable[..., None]:
    """Print what a command returns as JSON if asked, and what the user can mend as one line.

    With ``--json``, nothing else is written to standard output.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        # Leave progress bars and results on the screen, and nothing else.
        warnings.filterwarnings("ignore")
        for name in ("lightning", "lightning.pytorch", "scvi"):
            logging.getLogger(name).setLevel(logging.ERROR)
        elsewhere = redirect_stdout(sys.stderr) if kwargs["as_json"] else nullcontext()
        try:
            with elsewhere:
                record = command(*args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            Console(stderr=True).print(
                f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from error
        if kwargs["as_json"]:
            print(_to_json(record))

    return wrapped


class _Result(NamedTuple):
    """A prediction of held-out cells, with all that is written of it."""

    split: HeldOut
    model: TRVAE
    predicted: AnnData
    metrics: pd.DataFrame


def _predict(split: HeldOut, method: TRVAEMethod, target: Any, seed: int) -> _Result:
    predicted, table = predict_held_out(split, method, target, seed)
    return _Result(split, method.model, predicted, table)


def save_result(
    result: _Result,
    out: Path,
    *,
    seed: int,
    library_key: str | None,
    layer: str | None = None,
) -> None:
    groups = (result.predicted, result.split.observed, result.split.control)
    scale: dict = {"layer": layer, "library_key": library_key}
    figure = Figure(figsize=(13.5, 4.8), layout="constrained")
    axes = figure.subplots(1, 3)
    pl.mean_scatter(*groups, ax=axes[0], title="Means", **scale)
    pl.mean_scatter(*groups, statistic="variance", ax=axes[1], title="Variances", **scale)
    pl.response(*groups, ax=axes[2], title="Response", **scale)
    figure.savefig(out / "figure.png", dpi=150)

    _write_results(result.predicted, result.model, _record(result, seed), out)


def _write_results(predicted: AnnData, model: TRVAE | ImageTRVAE, record: dict, out: Path) -> None:
    """Write all but the figure."""
    _write(predicted, out / "predicted.h5ad")
    model.save(str(out / "model"), overwrite=True)
    with atomic_write(out / "metrics.json") as unfinished:
        unfinished.write_text(_to_json(record) + "\n")
    console.print(
        f"Wrote figure.png, predicted.h5ad, model and metrics.json to {out}.", soft_wrap=True
    )


def _record(result: _Result, seed: int) -> dict:
    """What is written about a prediction of held-out cells."""
    return {
        "metrics": result.metrics.to_dict(orient="index"),
        "nearest": result.metrics.attrs["nearest"],
        "seed": seed,
        "n_cells": {
            "predicted": result.predicted.n_obs,
            "observed": result.split.observed.n_obs,
        },
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = ("trvae-tools", "scvi-tools", "torch", "anndata", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _to_json(record: dict) -> str:
    """JSON, which knows neither NaN nor numpy."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and isnan(value) else value

    return json.dumps(plain(record), indent=2, allow_nan=False, default=str)


def _check_new(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already. Name another folder, or give --overwrite.")


def _print_table(table: pd.DataFrame, title: str, headings: dict[str, str]) -> None:
    """Print those of the columns that have a heading."""
    shown = [column for column in headings if column in table]
    printed = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    printed.add_column("", no_wrap=True)
    for column in shown:
        printed.add_column(headings[column], justify="right", no_wrap=True)
    for method, row in table.iterrows():
        style = "bold" if method == "prediction" else None
        printed.add_row(str(method), *(f"{row[column]:.3f}" for column in shown), style=style)
    console.print(printed)


def _print_metrics(table: pd.DataFrame, title: str) -> None:
    _print_table(table, title, _SHOWN_METRICS)
    console.print(
        "For RMSE and energy distance lower is better, for all others higher. "
        f"Nearest: the shift of {escape(str(table.attrs['nearest']))}. "
        "Ceiling: one half of the measured cells against the other.",
        style="dim",
    )


def _write(adata: AnnData, path: Path) -> None:
    """Write beside and rename, so that an interruption leaves no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        write_h5ad(unfinished, adata, compression="gzip")
