"""``trvae demo``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from matplotlib.figure import Figure

from trvae import ImageTRVAE, TRVAEMethod, datasets, metrics, pl
from trvae.cli._options import AsJson, MaxEpochs, Seed, app
from trvae.cli._output import (
    _predict,
    _print_metrics,
    _print_table,
    _record,
    _versions,
    _write_results,
    console,
    reporting,
    save_result,
)
from trvae.evaluation._split import hold_out

if TYPE_CHECKING:
    pass


# Half of the default: threes are drawn well after that.
_DEMO_EPOCHS_OF_IMAGES = 26


_IMAGE_METRICS = {
    "stroke_thickness": "stroke thickness\n(pixels)",
    "energy_distance": "energy\ndistance",
}


_CAN_MEASURE_STROKES = find_spec("skimage") is not None


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
    save_result(result, out, library_key="n_counts", seed=seed)
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
