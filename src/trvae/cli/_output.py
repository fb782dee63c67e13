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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trvae import pl
from trvae.evaluation._split import HeldOut, predict_held_out
from trvae.io._atomic import atomic_write
from trvae.io._hdf5 import write_h5ad
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from trvae import TRVAE, ImageTRVAE, TRVAEMethod

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
    """Print the summary that a command returns as JSON if requested, and errors on one line.

    With ``--json``, standard output has the JSON only.
    """

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        # Only progress bars and results should be on the screen.
        warnings.filterwarnings("ignore")
        for name in ("lightning", "lightning.pytorch", "scvi"):
            logging.getLogger(name).setLevel(logging.ERROR)
        elsewhere = redirect_stdout(sys.stderr) if kwargs["as_json"] else nullcontext()
        try:
            with elsewhere:
                returned = command(*args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            Console(stderr=True).print(
                f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from error
        if kwargs["as_json"]:
            print(_to_json(returned))

    return wrapped


def check_new(folder: Path, overwrite: bool) -> None:
    """Raise a ``ValueError`` if there is a model that may not be replaced."""
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already. Choose another folder, or use --overwrite.")


def save_model(model: TRVAE, out: Path, overwrite: bool) -> dict:
    """Save a trained model, and return its summary."""
    model.save(str(out), overwrite=overwrite)
    conditions = ", ".join(map(str, model.conditions))
    console.print(f"Saved the model to {out}. Its conditions: {conditions}.", soft_wrap=True)
    # Exit with an error if interrupted, although the model was saved.
    end_if_interrupted(model)
    return {
        "out": str(out),
        "conditions": model.conditions,
        "n_cells": model.summary_stats.n_cells,
        "seed": model.seed,
        "final": {name: table.iloc[-1, 0] for name, table in (model.history or {}).items()},
        "versions": versions(),
    }


class Result(NamedTuple):
    """A prediction of held-out cells."""

    split: HeldOut
    model: TRVAE
    predicted: AnnData
    metrics: pd.DataFrame
    seed: int


def predict(split: HeldOut, method: TRVAEMethod, target: Any, seed: int) -> Result:
    """Train a model and predict the held-out cells."""
    predicted, metrics = predict_held_out(split, method, target, seed)
    return Result(split, method.model, predicted, metrics, seed)


def print_metrics(metrics: pd.DataFrame, title: str) -> None:
    """Print the main metrics of a prediction, its baselines and the replicate."""
    print_table(metrics, title, _SHOWN_METRICS)
    console.print(
        "Lower is better for RMSE and energy distance, higher for all others. "
        f"Nearest: the shift of {escape(str(metrics.attrs['nearest']))}. "
        "Replicate: what a repetition of the experiment would score.",
        style="dim",
    )


def print_table(table: pd.DataFrame, title: str, headings: dict[str, str]) -> None:
    """Print the columns that have a heading."""
    shown = [column for column in headings if column in table]
    printed = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    printed.add_column("", no_wrap=True)
    for column in shown:
        printed.add_column(headings[column], justify="right", no_wrap=True)
    for method, row in table.iterrows():
        style = "bold" if method == "prediction" else None
        printed.add_row(str(method), *(f"{row[column]:.3f}" for column in shown), style=style)
    console.print(printed)


def save_result(result: Result, out: Path) -> None:
    """Write the figure, the prediction, the model and the metrics."""
    groups = (result.predicted, result.split.observed, result.split.control)
    scale = {key: result.split.keys[key] for key in ("layer", "library_key")}
    figure = Figure(figsize=(13.5, 4.8), layout="constrained")
    axes = figure.subplots(1, 3)
    pl.mean_scatter(*groups, ax=axes[0], title="Means", **scale)
    pl.mean_scatter(*groups, statistic="variance", ax=axes[1], title="Variances", **scale)
    pl.response(*groups, ax=axes[2], title="Response", **scale)
    write_results(figure, result.predicted, result.model, summary(result), out)


def write_results(
    figure: Figure, predicted: AnnData, model: TRVAE | ImageTRVAE, record: dict, out: Path
) -> None:
    """Write results to a folder that exists, ``record`` as ``metrics.json``."""
    figure.savefig(out / "figure.png", dpi=150)
    with atomic_write(out / "predicted.h5ad") as unfinished:
        write_h5ad(unfinished, predicted, compression="gzip")
    model.save(str(out / "model"), overwrite=True)
    with atomic_write(out / "metrics.json") as unfinished:
        unfinished.write_text(_to_json(record) + "\n")
    console.print(
        f"Wrote figure.png, predicted.h5ad, model and metrics.json to {out}.", soft_wrap=True
    )


def summary(result: Result) -> dict:
    """Summarise a prediction of held-out cells."""
    return {
        "metrics": result.metrics.to_dict(orient="index"),
        "nearest": result.metrics.attrs["nearest"],
        "seed": result.seed,
        "n_cells": {
            "predicted": result.predicted.n_obs,
            "observed": result.split.observed.n_obs,
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine the numbers."""
    packages = ("trvae-tools", "scvi-tools", "torch", "anndata", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _to_json(record: dict) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(held) for key, held in value.items()}
        if isinstance(value, list):
            return [plain(held) for held in value]
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and isnan(value) else value

    # JSON has neither NaN nor NumPy's scalars.
    return json.dumps(plain(record), indent=2, allow_nan=False, default=str)
