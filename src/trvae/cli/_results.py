"""Models, predictions and their files, as commands write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from rich.markup import escape

from trvae import pl
from trvae._scvi import ProgressBar
from trvae.cli._reporting import RESULTS, console, is_watched, print_table, to_json, versions
from trvae.evaluation._split import HeldOut, predict_held_out
from trvae.io._atomic import atomic_write
from trvae.io._hdf5 import write_h5ad
from trvae.metrics import summarize
from trvae.metrics._baselines import BASELINES
from trvae.metrics._skill import errors
from trvae.metrics._summary import HEADINGS
from trvae.pl._output import BLUE, ORANGE
from trvae.pl._values import normalized
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from pathlib import Path

    from trvae import TRVAE, ImageTRVAE, TRVAEMethod


def progress() -> dict[str, Any]:
    """Arguments of ``train``: a progress bar in a terminal, nothing in a log file."""
    if not is_watched():
        return {"enable_progress_bar": False}
    return {"simple_progress_bar": False, "callbacks": [_Bar()]}


class _Bar(ProgressBar):
    """scvi-tools' bar without the number of a log that is not written."""

    def get_metrics(self, *args):
        return {
            name: value for name, value in super().get_metrics(*args).items() if name != "v_num"
        }


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
    print_table(summarize(metrics), title)
    console.print(_verdict(metrics), highlight=False)
    console.print(
        "Arrows point to better values. Shifts add a change of other types to all cells, nearest that of "
        f"{escape(str(metrics.attrs['nearest']))}; linear predicts it by regression, and linear counts "
        "draws counts with it. Replicate: what a repetition of the experiment would score.",
        style="dim",
    )


def _verdict(metrics: pd.DataFrame) -> str:
    """Where the prediction is ahead of all baselines, and which is ahead of it, in words."""
    error = errors(metrics)[list(HEADINGS)].rename(columns=HEADINGS)
    baselines = error[error.index.isin(BASELINES)]
    is_ahead = error.loc["prediction"] < baselines.min()
    ahead = f"Ahead of every baseline in: {', '.join(error.columns[is_ahead]) or 'no measure'}."
    behind = [f"{baselines[name].idxmin()} in {name}" for name in error.columns[~is_ahead]]
    return f"{ahead} Behind {', '.join(behind)}." if behind else ahead


def save_result(result: Result, out: Path) -> None:
    """Write the figure, the prediction, the model and the metrics."""
    groups = (result.predicted, result.split.observed, result.split.control)
    figure = _figure(*groups, result.split.keys)
    write_results(figure, result.predicted, result.model, summary(result), out)


def _figure(
    predicted: AnnData, observed: AnnData, control: AnnData, keys: dict[str, Any]
) -> Figure:
    """Draw cells, changes and genes of control, predicted and observed cells."""
    scale = {key: keys[key] for key in ("layer", "library_key")}
    figure = Figure(figsize=(11.5, 4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    groups = {"control": control, "predicted": predicted, "observed": observed}
    values = normalized(groups, **scale)
    cells = AnnData(np.concatenate(list(values.values())))
    of_group = np.repeat(list(values), list(map(len, values.values())))
    cells.obs["cells"] = pd.Categorical(of_group, categories=list(values))
    sc.pp.pca(cells, n_comps=2)
    # In random order, so that no group hides the others.
    order = np.random.default_rng(0).permutation(len(cells))
    sc.pl.pca(
        cells[order],
        color="cells",
        palette=["0.7", ORANGE, BLUE],
        size=60,
        title="Cells",
        ax=axes[0],
        show=False,
    )
    pl.response(predicted, observed, control, ax=axes[1], title="Change of each gene", **scale)
    axes[1].set(
        xlabel="observed change (log-normalised)", ylabel="predicted change (log-normalised)"
    )
    pl.response_by_label(
        predicted, observed, control, labels_key=keys["labels_key"], ax=axes[2],
        title="Genes that change most", **scale,
    )  # fmt: skip
    return figure


def write_results(
    figure: Figure, predicted: AnnData, model: TRVAE | ImageTRVAE, record: dict, out: Path
) -> None:
    """Write results to a folder that exists, ``record`` as ``metrics.json``."""
    picture, cells, folder, metrics = (out / name for name in RESULTS)
    figure.savefig(picture, dpi=150)
    with atomic_write(cells) as unfinished:
        write_h5ad(unfinished, predicted, compression="gzip")
    model.save(str(folder), overwrite=True)
    with atomic_write(metrics) as unfinished:
        unfinished.write_text(to_json(record) + "\n")
    console.print(f"Wrote {', '.join(RESULTS)} to {out}.", soft_wrap=True)


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
