"""The ``trvae`` command: a thin shell over the Python API."""

from __future__ import annotations

import functools
import json
import logging
import platform
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer
import zarr
from anndata import AnnData, read_h5ad, read_zarr
from anndata.experimental import read_lazy
from matplotlib.figure import Figure
from mudata import MuData, read_h5mu
from mudata import read_zarr as read_zarr_of_mudata
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trvae import TRVAE, ImageTRVAE, TRVAEMethod, datasets, metrics, pl
from trvae._data import in_memory
from trvae._evaluate import HeldOut, hold_out, predict_held_out
from trvae._interruption import end_if_interrupted
from trvae._module import GeneLikelihood
from trvae._mudata import DEFAULT_MODALITY, cells_of, places_of
from trvae._stream import complete_or_absent, write_h5ad
from trvae._transfer import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

app = typer.Typer(
    help="Predict cells under conditions in which they were not measured, with trVAE.",
    epilog="Exit status: 0 if all is done, 1 with one line on what is wrong, 2 for wrong usage.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

Data = Annotated[Path, typer.Argument(help="h5ad, h5mu or zarr with the cells.")]
ConditionKey = Annotated[str, typer.Option(help="Column of obs with the conditions.")]
LabelsKey = Annotated[str | None, typer.Option(help="Column of obs with the cell types.")]
Layer = Annotated[str | None, typer.Option(help="Layer with the counts; X if not given.")]
LibraryKey = Annotated[
    str | None, typer.Option(help="Column of obs with library sizes over all genes.")
]
Modality = Annotated[str, typer.Option(help="Modality with the expression, of an h5mu.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
MaxEpochs = Annotated[int | None, typer.Option(help="Passes over the data.", min=1)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print a summary as JSON; all else goes to standard error."),
]
LikelihoodOption = Annotated[
    GeneLikelihood, typer.Option(help="'normal' for log-normalised values, else one of counts.")
]

_MAX_CELLS_TO_ASSESS = 2_000
# Half of the default: threes are drawn well after that.
_DEMO_EPOCHS_OF_IMAGES = 26
_SHOWN_METRICS = {
    "r2_mean": "R² of\nmeans",
    "r2_variance": "R² of\nvariances",
    "r2_mean_top": "R² top\ngenes",
    "change": "r of\nchange",
    "rmse": "RMSE",
    "energy_distance": "energy\ndistance",
}
_IMAGE_METRICS = {
    "stroke_thickness": "stroke thickness\n(pixels)",
    "energy_distance": "energy\ndistance",
}
_CAN_MEASURE_STROKES = find_spec("skimage") is not None


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


@app.command()
@reporting
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("trvae-demo"),
    images: Annotated[
        bool, typer.Option("--images", help="Draw thin and thick digits in place of cells.")
    ] = False,
    seed: Seed = 0,
    max_epochs: MaxEpochs = None,
    as_json: AsJson = False,
) -> dict:
    """Predict NK cells under interferon-beta that the model has never seen.

    Uses the PBMCs of Kang et al. (2018) that ship with the package. With --images, handwritten
    digits: threes are drawn thin and thick, of which the model has seen none. Writes a figure,
    the prediction, the model and the metrics into the folder --out.

    Example: trvae demo --out results
    """
    out.mkdir(parents=True, exist_ok=True)
    if images:
        return _demo_of_images(out, seed, max_epochs)
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
    return _record(result, seed) | {"out": str(out)}


def _demo_of_images(out: Path, seed: int, max_epochs: int | None) -> dict:
    console.print("Training on handwritten digits, without thin and thick threes ...")
    adata = datasets.stroke_digits()
    held_out = (adata.obs["digit"] == "3") & (adata.obs["condition"] != "normal")
    train, observed = adata[~held_out].copy(), adata[held_out].copy()
    ImageTRVAE.setup_anndata(
        train, condition_key="condition", labels_key="digit", image_shape=adata.uns["image_shape"]
    )
    model = ImageTRVAE(train, seed=seed)
    model.train(max_epochs or _DEMO_EPOCHS_OF_IMAGES)
    given = train[(train.obs["digit"] == "3") & (train.obs["condition"] == "normal")].copy()
    targets = list(observed.obs["condition"].unique())
    predicted: AnnData = model.transfer(given, targets)

    tables = {one: _compare_images(train, given, predicted, observed, one) for one in targets}
    for target, table in tables.items():
        _print_table(table, f"Threes drawn {target}, never seen in training", _IMAGE_METRICS)
    console.print("Energy distance is between pixels; lower is better.", style="dim")
    if not _CAN_MEASURE_STROKES:
        console.print("For stroke thickness: pip install 'trvae-tools[images]'.", style="dim")
    figure = Figure(figsize=(13.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    pl.transferred_images(model, given, targets, observed=observed, ax=left)
    pl.interpolated_images(model, given, targets[-1], ax=right)
    figure.savefig(out / "figure.png", dpi=150)
    record = {
        "metrics": {target: table.to_dict(orient="index") for target, table in tables.items()},
        "seed": seed,
        "n_images": {"predicted": predicted.n_obs, "observed": observed.n_obs},
        "versions": _versions(),
    }
    _write_results(predicted, model, record, out)
    return record | {"out": str(out)}


def _compare_images(
    train: AnnData, given: AnnData, predicted: AnnData, observed: AnnData, target: str
) -> pd.DataFrame:
    """Compare images drawn under a condition with real ones, beside what takes no network."""

    def under(adata: AnnData, condition: str) -> np.ndarray:
        return adata.X[adata.obs["condition"] == condition] / 255

    seen = train[train.obs["digit"] != "3"]
    shift = under(seen, target).mean(0) - under(seen, "normal").mean(0)
    real = under(observed, target)
    shape = (-1, *train.uns["image_shape"])
    drawn = {
        "prediction": under(predicted, target),
        "no change": given.X / 255,
        "mean shift": (given.X / 255 + shift).clip(0, 1),
        "measured": real,
    }
    table = pd.DataFrame(index=[*drawn])
    if _CAN_MEASURE_STROKES:
        table["stroke_thickness"] = [
            np.nanmean(metrics.stroke_thickness(images.reshape(shape)))
            for images in drawn.values()
        ]
    table["energy_distance"] = [metrics.energy_distance(images, real) for images in drawn.values()]
    return table


@app.command()
@reporting
def train(
    data: Data,
    condition_key: ConditionKey,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    labels_key: LabelsKey = None,
    layer: Layer = None,
    library_key: LibraryKey = None,
    modality: Modality = DEFAULT_MODALITY,
    gene_likelihood: LikelihoodOption = "nb",
    max_epochs: MaxEpochs = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> dict:
    """Train a model and save it.

    Example: trvae train pbmc.h5ad --condition-key condition --labels-key cell_type --out model
    """
    _check_new(out, overwrite)
    cells = _read(data)
    keys: dict[str, Any] = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "library_key": library_key,
    }
    if isinstance(cells, MuData):
        TRVAE.setup_mudata(cells, rna_layer=layer, **keys, **places_of(cells, modality, keys))
    else:
        TRVAE.setup_anndata(cells, layer=layer, **keys)
    model = TRVAE(cells, gene_likelihood=gene_likelihood, seed=seed)
    model.train(max_epochs)
    return _save_model(model, out, overwrite)


@app.command()
@reporting
def transfer(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    data: Data,
    to: Annotated[list[str], typer.Option(help="Condition to predict; may be given repeatedly.")],
    out: Annotated[Path, typer.Option(help="h5ad, h5mu or zarr for the prediction.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Transfer only cells of this condition.")
    ] = None,
    estimate: Annotated[
        Estimate,
        typer.Option(help="Of these very cells, or the decoder's average cells."),
    ] = "counterfactual",
    modality: Modality = DEFAULT_MODALITY,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> dict:
    """Predict cells under another condition.

    After an interruption, the same command goes on where it stopped. Tells for each cell type
    whether the prediction is close to what the model has seen.

    Of an h5mu, the other modalities are kept, unless the model is of an h5ad: it takes the modality
    and writes an h5ad.

    Example: trvae transfer model nk.h5ad --from control --to stimulated --out predicted.h5ad
    """
    loaded = TRVAE.load(str(model), adata=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = _read_for(loaded, data, modality, lazily=True)
    targets = [_named(name, loaded.conditions) for name in to]
    target = targets[0] if len(targets) == 1 else targets
    from_ = None if source is None else _named(source, loaded.conditions)
    loaded.transfer(cells, target, source_condition=from_, estimate=estimate, seed=seed, out=out)
    console.print(f"Wrote the predicted cells to {out}.", soft_wrap=True)
    assessed = _assess(loaded, cells, target, from_, seed)
    for sentence in assessed["summary"]:
        console.print(f"- {escape(sentence)}", highlight=False)
    groups = assessed.reset_index().to_dict("records")
    return {"out": str(out), "seed": seed, "groups": groups, "versions": _versions()}


def _assess(
    model: TRVAE, data: AnnData | MuData, target: Any, source: Any, seed: int
) -> pd.DataFrame:
    """Assess the transfer of a sample of the cells."""
    cells = model._cells_of(data)
    positions, _ = model._chosen_cells(in_memory(cells.obs), source, None)
    if len(positions) > _MAX_CELLS_TO_ASSESS:
        rng = np.random.default_rng(seed)
        positions = np.sort(rng.choice(positions, _MAX_CELLS_TO_ASSESS, replace=False))
    sample = cells[positions].to_memory()
    return model.assess_transfer(sample, target, source_condition=source, seed=seed)


@app.command("map")
@reporting
def map_query(
    model: Annotated[Path, typer.Argument(help="Folder of the reference model.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the model with the new conditions.")],
    latent: Annotated[
        Path | None, typer.Option(help="CSV for the cells' latent representation.")
    ] = None,
    match_reference: Annotated[
        bool, typer.Option("--match-reference", help="Match the cells to the reference by MMD.")
    ] = False,
    modality: Modality = DEFAULT_MODALITY,
    max_epochs: MaxEpochs = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> dict:
    """Map cells of new conditions, batches or studies onto a trained reference.

    What the reference predicts stays the same. Old and new conditions can then be transferred into
    each other.

    Example: trvae map model new_study.h5ad --out mapped --latent latent.csv
    """
    _check_new(out, overwrite)
    reference = TRVAE.load(str(model), adata=False)
    query = _read_for(reference, data, modality)
    mapped = TRVAE.load_query_data(query, reference, match_reference=match_reference)
    if not mapped.is_trained_:
        mapped.train(max_epochs)
    if latent is not None:
        z = pd.DataFrame(mapped.get_latent_representation(), index=mapped.adata.obs_names)
        with complete_or_absent(latent) as unfinished:
            z.add_prefix("z").to_csv(unfinished, index_label="cell")
    return _save_model(mapped, out, overwrite)


@app.command()
@reporting
def evaluate(
    data: Data,
    condition_key: ConditionKey,
    labels_key: Annotated[str, typer.Option(help="Column of obs with the cell types.")],
    label: Annotated[str, typer.Option(help="Cell type to hold out.")],
    source: Annotated[str, typer.Option("--from", help="Condition to predict from.")],
    to: Annotated[str, typer.Option(help="Condition to hold out and predict.")],
    layer: Layer = None,
    library_key: LibraryKey = None,
    modality: Modality = DEFAULT_MODALITY,
    gene_likelihood: LikelihoodOption = "nb",
    max_epochs: MaxEpochs = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> dict:
    """Hold out one cell type's treated cells, predict them, and compare with the measured ones.

    Example: trvae evaluate pbmc.h5ad --condition-key condition --labels-key cell_type --label NK
    --from control --to stimulated
    """
    if out is not None:
        _check_new(out / "model", overwrite)
        out.mkdir(parents=True, exist_ok=True)
    keys: dict[str, Any] = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "library_key": library_key,
    }
    adata = _as_anndata(_read(data), modality, layer=layer, **keys)
    conditions, labels = adata.obs.get(condition_key, []), adata.obs.get(labels_key, [])
    target = _named(to, conditions)
    split = hold_out(
        adata,
        label=_named(label, labels),
        source_condition=_named(source, conditions),
        target_condition=target,
        layer=layer,
        **keys,
    )
    method = TRVAEMethod({"gene_likelihood": gene_likelihood}, {"max_epochs": max_epochs})
    result = _predict(split, method, target, seed)
    _print_metrics(result.metrics, f"{label} under {to}, never seen in training")
    if out is not None:
        _save(result, out, layer=layer, library_key=library_key, seed=seed)
    return _record(result, seed) | {"out": None if out is None else str(out)}


class _Result(NamedTuple):
    """A prediction of held-out cells, with all that is written of it."""

    split: HeldOut
    model: TRVAE
    predicted: AnnData
    metrics: pd.DataFrame


def _predict(split: HeldOut, method: TRVAEMethod, target: Any, seed: int) -> _Result:
    predicted, table = predict_held_out(split, method, target, seed)
    return _Result(split, method.model, predicted, table)


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

    _write_results(result.predicted, result.model, _record(result, seed), out)


def _write_results(predicted: AnnData, model: TRVAE | ImageTRVAE, record: dict, out: Path) -> None:
    """Write all but the figure."""
    _write(predicted, out / "predicted.h5ad")
    model.save(str(out / "model"), overwrite=True)
    with complete_or_absent(out / "metrics.json") as unfinished:
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


def _save_model(model: TRVAE, out: Path, overwrite: bool) -> dict:
    model.save(str(out), overwrite=overwrite)
    conditions = ", ".join(map(str, model.conditions))
    console.print(f"Saved the model to {out}. Its conditions: {conditions}.", soft_wrap=True)
    # The model is there, but whoever waits for it shall know that it is not as asked for.
    end_if_interrupted(model)
    return {
        "out": str(out),
        "conditions": model.conditions,
        "n_cells": model.adata.n_obs,
        "seed": model.seed,
        "final": {name: table.iloc[-1, 0] for name, table in (model.history or {}).items()},
        "versions": _versions(),
    }


def _check_new(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already. Name another folder, or give --overwrite.")


def _read(path: Path, *, lazily: bool = False) -> AnnData | MuData:
    """Read a file or a zarr store, or open it to be read bit by bit."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if path.suffix == ".zarr":
        if zarr.open_group(path, mode="r").attrs.get("encoding-type") == "MuData":
            return read_zarr_of_mudata(path)
        return read_lazy(path) if lazily else read_zarr(path)
    if path.suffix not in (".h5ad", ".h5mu"):
        raise ValueError(f"{path} is neither .h5ad nor .h5mu nor .zarr.")
    read = read_h5ad if path.suffix == ".h5ad" else read_h5mu
    return read(path, backed="r" if lazily else None)


def _read_for(
    model: TRVAE, path: Path, modality: str, *, lazily: bool = False
) -> AnnData | MuData:
    """Read cells as a model takes them: one modality if it is no model of MuData."""
    data = _read(path, lazily=lazily)
    if model._modality is not None:
        return data
    return _as_anndata(data, modality, **model.registry["setup_args"])


def _as_anndata(
    data: AnnData | MuData, modality: str, *, layer: str | None, **keys: Any
) -> AnnData:
    """Return an AnnData as it is, and of a MuData the modality."""
    if not isinstance(data, MuData):
        return data
    return cells_of(data, {"rna_layer": layer} | keys | places_of(data, modality, keys))


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
    with complete_or_absent(path) as unfinished:
        write_h5ad(unfinished, adata, compression="gzip")
