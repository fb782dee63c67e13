"""The ``trvae`` command: a thin shell over the Python API."""

from __future__ import annotations

import functools
import json
import logging
import platform
import warnings
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from anndata import AnnData, read_h5ad
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trvae import TRVAE, TRVAEMethod, datasets, pl
from trvae._evaluate import HeldOut, hold_out, predict_held_out
from trvae._module import GeneLikelihood
from trvae._stream import complete_or_absent
from trvae._transfer import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd

app = typer.Typer(
    help="Predict cells under conditions in which they were not measured, with trVAE.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Data = Annotated[Path, typer.Argument(help="h5ad file with the cells.", exists=True)]
ConditionKey = Annotated[str, typer.Option(help="Column of obs with the conditions.")]
LabelsKey = Annotated[str | None, typer.Option(help="Column of obs with the cell types.")]
Layer = Annotated[str | None, typer.Option(help="Layer with the counts; X if not given.")]
LibraryKey = Annotated[
    str | None, typer.Option(help="Column of obs with library sizes over all genes.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
MaxEpochs = Annotated[int | None, typer.Option(help="Passes over the data.", min=1)]
LikelihoodOption = Annotated[
    GeneLikelihood, typer.Option(help="'normal' for log-normalised values, else one of counts.")
]

_SHOWN_METRICS = {
    "r2_mean": "R² of\nmeans",
    "r2_variance": "R² of\nvariances",
    "r2_mean_top": "R² top\ngenes",
    "change": "r of\nchange",
    "rmse": "RMSE",
    "energy_distance": "energy\ndistance",
}


def errors_on_one_line(command: Callable) -> Callable:
    """Show what the user can mend as one line, without a traceback, and exit with 1."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            Console(stderr=True).print(
                f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from error

    return wrapped


@app.command()
@errors_on_one_line
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("trvae-demo"),
    seed: Seed = 0,
    max_epochs: MaxEpochs = None,
) -> None:
    """Predict NK cells under interferon-beta that the model has never seen.

    Uses the PBMCs of Kang et al. (2018) that ship with the package. Writes a figure, the
    prediction, the model and the metrics into the folder --out.
    """
    _quiet()
    out.mkdir(parents=True, exist_ok=True)
    console.print("Training on all cells but the stimulated NK cells ...")
    split = hold_out(
        datasets.kang18(),
        label="NK",
        source_condition="control",
        target_condition="stimulated",
        condition_key="condition",
        labels_key="cell_type",
        library_key="n_counts",
    )
    method = TRVAEMethod(train_kwargs={"max_epochs": max_epochs})
    result = _predict(split, method, "stimulated", seed)
    _print_metrics(result.metrics, "Stimulated NK cells, never seen in training")
    _save(result, out, library_key="n_counts", seed=seed)


@app.command()
@errors_on_one_line
def train(
    data: Data,
    condition_key: ConditionKey,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    labels_key: LabelsKey = None,
    layer: Layer = None,
    library_key: LibraryKey = None,
    gene_likelihood: LikelihoodOption = "nb",
    max_epochs: MaxEpochs = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing model.")] = False,
) -> None:
    """Train a model on an h5ad file and save it.

    Example: trvae train pbmc.h5ad --condition-key condition --labels-key cell_type --out model
    """
    _quiet()
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already. Name another folder, or give --overwrite.")
    adata = read_h5ad(data)
    TRVAE.setup_anndata(
        adata,
        condition_key=condition_key,
        labels_key=labels_key,
        layer=layer,
        library_key=library_key,
    )
    model = TRVAE(adata, gene_likelihood=gene_likelihood, seed=seed)
    model.train(max_epochs)
    model.save(str(out), overwrite=overwrite)
    conditions = ", ".join(map(str, model.conditions))
    console.print(f"Saved the model to {out}. Its conditions: {conditions}.", soft_wrap=True)


@app.command()
@errors_on_one_line
def transfer(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.", exists=True)],
    data: Data,
    to: Annotated[str, typer.Option(help="Condition to predict.")],
    out: Annotated[Path, typer.Option(help="h5ad or zarr for the prediction.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Transfer only cells of this condition.")
    ] = None,
    estimate: Annotated[
        Estimate,
        typer.Option(help="Of these very cells, or the decoder's average cells."),
    ] = "counterfactual",
    seed: Seed = 0,
) -> None:
    """Predict the cells of an h5ad file under another condition.

    After an interruption, the same command goes on where it stopped.

    Example: trvae transfer model nk.h5ad --from control --to stimulated --out predicted.h5ad
    """
    _quiet()
    loaded = TRVAE.load(str(model), adata=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded.transfer(
        read_h5ad(data, backed="r"),
        _named(to, loaded.conditions),
        source_condition=None if source is None else _named(source, loaded.conditions),
        estimate=estimate,
        seed=seed,
        out=out,
    )
    console.print(f"Wrote the predicted cells to {out}.", soft_wrap=True)


@app.command()
@errors_on_one_line
def evaluate(
    data: Data,
    condition_key: ConditionKey,
    labels_key: Annotated[str, typer.Option(help="Column of obs with the cell types.")],
    label: Annotated[str, typer.Option(help="Cell type to hold out.")],
    source: Annotated[str, typer.Option("--from", help="Condition to predict from.")],
    to: Annotated[str, typer.Option(help="Condition to hold out and predict.")],
    layer: Layer = None,
    library_key: LibraryKey = None,
    gene_likelihood: LikelihoodOption = "nb",
    max_epochs: MaxEpochs = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
) -> None:
    """Hold out one cell type's treated cells, predict them, and compare with the measured ones.

    Example: trvae evaluate pbmc.h5ad --condition-key condition --labels-key cell_type --label NK
    --from control --to stimulated
    """
    _quiet()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    adata = read_h5ad(data)
    conditions, labels = adata.obs.get(condition_key, []), adata.obs.get(labels_key, [])
    target = _named(to, conditions)
    split = hold_out(
        adata,
        label=_named(label, labels),
        source_condition=_named(source, conditions),
        target_condition=target,
        condition_key=condition_key,
        labels_key=labels_key,
        layer=layer,
        library_key=library_key,
    )
    method = TRVAEMethod({"gene_likelihood": gene_likelihood}, {"max_epochs": max_epochs})
    result = _predict(split, method, target, seed)
    _print_metrics(result.metrics, f"{label} under {to}, never seen in training")
    if out is not None:
        _save(result, out, layer=layer, library_key=library_key, seed=seed)


class _Result(NamedTuple):
    """A prediction of held-out cells, with all that is written of it."""

    split: HeldOut
    model: TRVAE
    predicted: AnnData
    metrics: pd.DataFrame


def _predict(split: HeldOut, method: TRVAEMethod, target: Any, seed: int) -> _Result:
    predicted, metrics = predict_held_out(split, method, target, seed)
    return _Result(split, method.model, predicted, metrics)


def _named(name: str, values: Iterable[Any]) -> Any:
    """The value that is written so on the command line, where all is text."""
    return next((value for value in values if str(value) == name), name)


def _save(
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

    _write(result.predicted, out / "predicted.h5ad")
    result.model.save(str(out / "model"), overwrite=True)
    packages = ("trvae-tools", "scvi-tools", "torch", "anndata", "numpy", "scipy")
    record = {
        # JSON knows no NaN.
        "metrics": {
            method: {measure: None if isnan(value) else value for measure, value in row.items()}
            for method, row in result.metrics.to_dict(orient="index").items()
        },
        "nearest": result.metrics.attrs["nearest"],
        "seed": seed,
        "n_cells": {"predicted": result.predicted.n_obs, "observed": groups[1].n_obs},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    console.print(
        f"Wrote figure.png, predicted.h5ad, model and metrics.json to {out}.", soft_wrap=True
    )


def _print_metrics(metrics: pd.DataFrame, title: str) -> None:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for heading in _SHOWN_METRICS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for method, row in metrics.iterrows():
        style = "bold" if method == "prediction" else None
        table.add_row(str(method), *(f"{row[m]:.3f}" for m in _SHOWN_METRICS), style=style)
    console.print(table)
    console.print(
        "For RMSE and energy distance lower is better, for all others higher. "
        f"Nearest: the shift of {escape(str(metrics.attrs['nearest']))}. "
        "Ceiling: one half of the measured cells against the other.",
        style="dim",
    )


def _write(adata: AnnData, path: Path) -> None:
    """Write beside and rename, so that an interruption leaves no half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete_or_absent(path) as unfinished:
        adata.write_h5ad(unfinished, compression="gzip")


def _quiet() -> None:
    """Leave progress bars and results on the screen, and nothing else."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
