"""``trvae train``, ``transfer``, ``map`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import typer
import zarr
from anndata import AnnData, read_h5ad, read_zarr
from anndata.experimental import read_lazy
from mudata import MuData, read_h5mu
from mudata import read_zarr as read_zarr_of_mudata
from rich.markup import escape

from trvae import TRVAE, TRVAEMethod
from trvae.cli._options import (
    AsJson,
    ConditionKey,
    Data,
    LabelsKey,
    Layer,
    LibraryKey,
    LikelihoodOption,
    MaxEpochs,
    Modality,
    Overwrite,
    Seed,
    app,
)
from trvae.cli._output import (
    _check_new,
    _predict,
    _print_metrics,
    _record,
    _versions,
    console,
    reporting,
    save_result,
)
from trvae.counterfactual._residual import Estimate
from trvae.data._checks import in_memory
from trvae.data._mudata import DEFAULT_MODALITY, cells_of, places_of
from trvae.evaluation._split import hold_out
from trvae.io._atomic import atomic_write
from trvae.model._selection import chosen_cells
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from collections.abc import Iterable


_MAX_CELLS_TO_ASSESS = 2_000


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
    cells = model.registered_data.cells_of(data)
    positions, _ = chosen_cells(model.registered_data, in_memory(cells.obs), source, None)
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
        with atomic_write(latent) as unfinished:
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
        save_result(result, out, layer=layer, library_key=library_key, seed=seed)
    return _record(result, seed) | {"out": None if out is None else str(out)}


def _named(name: str, values: Iterable[Any]) -> Any:
    """The value that is written so on the command line, where all is text."""
    return next((value for value in values if str(value) == name), name)


def _save_model(model: TRVAE, out: Path, overwrite: bool) -> dict:
    model.save(str(out), overwrite=overwrite)
    conditions = ", ".join(map(str, model.conditions))
    console.print(f"Saved the model to {out}. Its conditions: {conditions}.", soft_wrap=True)
    # The model is there, but whoever waits for it shall know that it is not as asked for.
    end_if_interrupted(model)
    return {
        "out": str(out),
        "conditions": model.conditions,
        "n_cells": model.summary_stats.n_cells,
        "seed": model.seed,
        "final": {name: table.iloc[-1, 0] for name, table in (model.history or {}).items()},
        "versions": _versions(),
    }


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
    if model.registered_data.modality is not None:
        return data
    return _as_anndata(data, modality, **model.registry["setup_args"])


def _as_anndata(
    data: AnnData | MuData, modality: str, *, layer: str | None, **keys: Any
) -> AnnData:
    """Return an AnnData as it is, and of a MuData the modality."""
    if not isinstance(data, MuData):
        return data
    return cells_of(data, {"rna_layer": layer} | keys | places_of(data, modality, keys))
