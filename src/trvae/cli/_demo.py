"""``trvae demo``: predict NK cells, or images of digits, that the model has not seen."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trvae.cli._options import AsJson, MaxEpochs, Overwrite, Seed
from trvae.cli._reporting import check_no_results, console, print_table, versions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from trvae.evaluation._split import HeldOut

# Half of the default is enough to draw threes well.
_EPOCHS_OF_IMAGES = 26


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("trvae-demo"),
    images: Annotated[
        bool, typer.Option("--images", help="Draw thin and thick digits instead of cells.")
    ] = False,
    seed: Seed = 0,
    max_epochs: MaxEpochs = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> dict:
    """Predict NK cells under interferon-beta that the model has never seen.

    Uses the PBMCs of Kang et al. (2018), which ship with the package. With --images, uses
    handwritten digits: draws threes thin and thick, without having seen any thin or thick three.
    Writes a figure, the prediction, the model and the metrics to the folder --out.

    Example: trvae demo --out results
    """
    from trvae import TRVAEMethod
    from trvae.cli._results import predict, print_metrics, progress, save_result, summary

    check_no_results(out, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    if images:
        return _demo_of_images(out, seed, max_epochs)
    console.print("Training on all cells except the stimulated NK cells ...")
    split = stimulated_nk_cells()
    method = TRVAEMethod(train_kwargs={"max_epochs": max_epochs} | progress())
    result = predict(split, method, "stimulated", seed)
    print_metrics(result.metrics, "Stimulated NK cells, never seen in training")
    save_result(result, out)
    return summary(result) | {"out": str(out)}


def stimulated_nk_cells() -> HeldOut:
    """Hold out the cells that the demo predicts."""
    from trvae import datasets
    from trvae.evaluation._split import hold_out

    return hold_out(
        datasets.kang18(),
        label="NK",
        source_condition="control",
        target_condition="stimulated",
        condition_key="condition",
        labels_key="cell_type",
        library_key="n_counts",
    )


def _demo_of_images(out: Path, seed: int, max_epochs: int | None) -> dict:
    from matplotlib.figure import Figure

    from trvae import ImageTRVAE, datasets, pl
    from trvae.cli._results import progress, write_results

    console.print("Training on handwritten digits, without thin and thick threes ...")
    adata = datasets.stroke_digits()
    is_three, is_normal = adata.obs["digit"] == "3", adata.obs["condition"] == "normal"
    train = adata[~is_three | is_normal].copy()
    normal, observed = adata[is_three & is_normal].copy(), adata[is_three & ~is_normal].copy()
    ImageTRVAE.setup_anndata(
        train, condition_key="condition", labels_key="digit", image_shape=adata.uns["image_shape"]
    )
    model = ImageTRVAE(train, seed=seed)
    model.train(max_epochs or _EPOCHS_OF_IMAGES, **progress())
    targets = list(observed.obs["condition"].unique())
    predicted: AnnData = model.transfer(normal, targets)

    tables = {
        target: _compare_images(train, normal, predicted, observed, target) for target in targets
    }
    headings = {
        "stroke_thickness": "stroke thickness (pixels)",
        "energy_distance": "energy distance ↓",
    }
    for target, table in tables.items():
        print_table(
            table.rename(columns=headings), f"Threes drawn {target}, never seen in training"
        )
    console.print("The energy distance is between pixels.", style="dim")
    if not _can_measure_strokes():
        console.print("For stroke thickness: pip install 'trvae-tools[images]'.", style="dim")
    figure = Figure(figsize=(13.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    pl.transferred_images(model, normal, targets, observed=observed, ax=left)
    pl.interpolated_images(model, normal, targets[-1], ax=right)
    record = {
        "metrics": {target: table.to_dict(orient="index") for target, table in tables.items()},
        "seed": seed,
        "n_images": {"predicted": predicted.n_obs, "observed": observed.n_obs},
        "versions": versions(),
    }
    write_results(figure, predicted, model, record, out)
    return record | {"out": str(out)}


def _compare_images(
    train: AnnData, normal: AnnData, predicted: AnnData, observed: AnnData, target: str
) -> pd.DataFrame:
    """Compare the images predicted under a condition, and two baselines, with real ones."""
    import numpy as np
    import pandas as pd

    from trvae import metrics

    def under(adata: AnnData, condition: str) -> np.ndarray:
        return adata.X[adata.obs["condition"] == condition] / 255

    others = train[train.obs["digit"] != "3"]
    shift = under(others, target).mean(0) - under(others, "normal").mean(0)
    real = under(observed, target)
    compared = {
        "prediction": under(predicted, target),
        "no change": normal.X / 255,
        "mean shift": (normal.X / 255 + shift).clip(0, 1),
        "measured": real,
    }
    table = pd.DataFrame(index=[*compared])
    if _can_measure_strokes():
        shape = (-1, *train.uns["image_shape"])
        table["stroke_thickness"] = [
            np.nanmean(metrics.stroke_thickness(images.reshape(shape)))
            for images in compared.values()
        ]
    table["energy_distance"] = [
        metrics.energy_distance(images, real) for images in compared.values()
    ]
    return table


def _can_measure_strokes() -> bool:
    return find_spec("skimage") is not None
