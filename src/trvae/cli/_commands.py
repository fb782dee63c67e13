"""``trvae train``, ``calibrate``, ``transfer``, ``map`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from trvae._utils._choices import DEFAULT_MODALITY, Estimate
from trvae.cli._options import (
    AsJson,
    ConditionKey,
    Data,
    LabelsKey,
    Layer,
    LibraryKey,
    Likelihood,
    MaxEpochs,
    Modality,
    Overwrite,
    Seed,
)
from trvae.cli._reporting import check_new, check_no_results, console, is_watched, versions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from trvae import TRVAE

# Commands import what they need when they run, so that --help answers at once.

_MAX_CELLS_TO_ASSESS = 2_000


def train(
    data: Data,
    condition_key: ConditionKey,
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    labels_key: LabelsKey = None,
    layer: Layer = None,
    library_key: LibraryKey = None,
    modality: Modality = DEFAULT_MODALITY,
    gene_likelihood: Likelihood = "nb",
    max_epochs: MaxEpochs = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> dict:
    """Train a model and save it.

    Example: trvae train pbmc.h5ad --condition-key condition --labels-key cell_type --out model
    """
    check_new(out, overwrite)
    from mudata import MuData

    from trvae import TRVAE
    from trvae.cli._input import read
    from trvae.cli._results import progress, save_model
    from trvae.data._mudata import places_of

    cells = read(data)
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
    console.print(f"Training on {model.summary_stats.n_cells:,} cells ...", highlight=False)
    model.train(max_epochs, **progress())
    return save_model(model, out, overwrite)


def calibrate(
    model: Annotated[
        Path, typer.Argument(help="Folder of a saved model, which is updated.", exists=True)
    ],
    data: Data,
    to: Annotated[str, typer.Option(help="Condition to predict.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Condition to predict from.")
    ] = None,
    modality: Modality = DEFAULT_MODALITY,
    jobs: Annotated[int, typer.Option(help="Models to train at the same time.", min=1)] = 1,
    as_json: AsJson = False,
) -> dict:
    """Leave cell types out in turn, to learn how to predict another one and how wrong that will be.

    DATA are the cells that the model was trained on. One more model is trained for each cell type, each as long
    as that one. After an interruption, the same command resumes where it stopped.

    Example: trvae calibrate model pbmc.h5ad --to stimulated
    """
    from trvae import TRVAE
    from trvae.cli._input import read_for, value_named
    from trvae.io._arrays import remove_arrays

    cells = read_for(TRVAE.load(str(model), adata=False), data, modality)
    loaded = TRVAE.load(str(model), cells)
    folds = model / "calibration"
    table = loaded.calibrate(
        value_named(to, loaded.conditions),
        source_condition=None if source is None else value_named(source, loaded.conditions),
        n_jobs=jobs,
        checkpoint_dir=folds,
        progress_bar=is_watched(),
    )
    # Another command may have calibrated other conditions in the meantime.
    loaded.calibration_ = TRVAE.load(str(model), adata=False).calibration_ | loaded.calibration_
    loaded.save(str(model), overwrite=True)
    remove_arrays(folds, loaded._finished_folds)
    shown = table[["r2_mean", "r2_mean_linear", "r2_mean_no_change"]].round(3)
    console.print("R2 of the means of cell types that were left out:", highlight=False)
    console.print(shown.to_string(), highlight=False)
    return {
        "out": str(model),
        "left_out": table.reset_index().to_dict("records"),
        "versions": versions(),
    }


def transfer(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.", exists=True)],
    data: Data,
    to: Annotated[list[str], typer.Option(help="Condition to predict; can be repeated.")],
    out: Annotated[Path, typer.Option(help="h5ad, h5mu or zarr for the prediction.")],
    source: Annotated[
        str | None, typer.Option("--from", help="Transfer only cells of this condition.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Transfer only cells of this cell type.")
    ] = None,
    estimate: Annotated[
        Estimate,
        typer.Option(
            help="'counterfactual' changes each cell's own counts; so does 'linear', by what a linear model of "
            "the cell types predicts. 'decoded' draws new counts."
        ),
    ] = "counterfactual",
    modality: Modality = DEFAULT_MODALITY,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> dict:
    """Predict cells under another condition.

    Also reports for each cell type how wrong the prediction may be. After an interruption, the same
    command resumes where it stopped.

    The other modalities of an h5mu are kept if the model was trained on an h5mu. A model of an h5ad
    reads one modality and writes an h5ad.

    Example: trvae transfer model nk.h5ad --from control --to stimulated --out predicted.h5ad
    """
    from trvae import TRVAE
    from trvae.cli._input import read_for, value_named
    from trvae.data._checks import in_memory
    from trvae.model._selection import chosen_cells

    loaded = TRVAE.load(str(model), adata=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = read_for(loaded, data, modality, lazily=True)
    targets = [value_named(name, loaded.conditions) for name in to]
    target = targets[0] if len(targets) == 1 else targets
    from_ = None if source is None else value_named(source, loaded.conditions)
    obs = in_memory(loaded.registered_data.cells_of(cells).obs)
    indices = None if label is None else _cells_of_type(loaded, obs, label)
    loaded.transfer(
        cells, target, source_condition=from_, indices=indices, estimate=estimate, seed=seed, out=out,
        progress_bar=is_watched(),
    )  # fmt: skip
    console.print(f"Wrote the predicted cells to {out}.", soft_wrap=True)
    try:
        selected, _ = chosen_cells(loaded.registered_data, obs, from_, indices)
        assessed = _assess(loaded, cells, selected, target, from_, seed)
    except ValueError as error:
        # The prediction is written nonetheless.
        console.print(f"The prediction can't be assessed: {escape(str(error))}", highlight=False)
        assessed = {"groups": []}
    return {"out": str(out), "seed": seed} | assessed | {"versions": versions()}


def _cells_of_type(model: TRVAE, obs: pd.DataFrame, label: str) -> np.ndarray:
    """Positions of the cells of a type; a ``ValueError`` if there are none."""
    import numpy as np
    from anndata import AnnData

    from trvae._utils._arguments import join_names
    from trvae.cli._input import value_named
    from trvae.data._checks import check_obs_column

    key = model.registered_data.arguments["labels_key"]
    if key is None:
        raise ValueError("the model was trained without cell types, so --label can't select any.")
    labels = check_obs_column(AnnData(obs=obs), "label", key, complete=False)
    positions = np.flatnonzero(labels == value_named(label, labels.unique()))
    if len(positions) == 0:
        raise ValueError(
            f"--label {label!r} is not in obs[{key!r}]: {join_names(labels.unique())}."
        )
    return positions


def _assess(
    model: TRVAE,
    data: AnnData | MuData,
    selected: np.ndarray,
    target: Any,
    source: Any,
    seed: int,
) -> dict:
    """Assess the transfer of selected cells, or of a sample if there are many; print the sentences."""
    import numpy as np

    from trvae._utils._matrices import read_rows
    from trvae.data._cells import with_matrix
    from trvae.data._checks import get_matrix, in_memory

    cells = model.registered_data.cells_of(data)
    assessed = selected
    if len(selected) > _MAX_CELLS_TO_ASSESS:
        rng = np.random.default_rng(seed)
        assessed = np.sort(rng.choice(selected, _MAX_CELLS_TO_ASSESS, replace=False))
    layer = model.registered_data.layer
    sample = with_matrix(
        in_memory(cells.obs).iloc[assessed],
        in_memory(cells.var),
        layer,
        read_rows(get_matrix(cells, layer), assessed),
    )
    groups = model.assess_transfer(sample, target, source_condition=source)
    if len(assessed) < len(selected):
        console.print(
            f"Of a random sample of {len(assessed):,} of the {len(selected):,} cells:",
            highlight=False,
        )
    for sentence in groups["summary"]:
        console.print(f"- {escape(sentence)}", highlight=False)
    return {
        "n_cells": len(selected),
        "n_assessed": len(assessed),
        "groups": groups.reset_index().to_dict("records"),
    }


def map_query(
    model: Annotated[Path, typer.Argument(help="Folder of the reference model.", exists=True)],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the model with the new conditions.")],
    latent: Annotated[
        Path | None, typer.Option(help="New CSV for the latent representation of the cells.")
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

    The reference's predictions stay the same. Cells can then be transferred between old and new
    conditions.

    Example: trvae map model new_study.h5ad --out mapped --latent latent.csv
    """
    check_new(out, overwrite)
    if latent is not None:
        check_new(latent, overwrite)
    import pandas as pd

    from trvae import TRVAE
    from trvae.cli._input import read_for
    from trvae.cli._results import progress, save_model
    from trvae.io._atomic import atomic_write

    if latent is not None:
        latent.parent.mkdir(parents=True, exist_ok=True)
    reference = TRVAE.load(str(model), adata=False)
    query = read_for(reference, data, modality)
    mapped = TRVAE.load_query_data(query, reference, match_reference=match_reference)
    if not mapped.is_trained_:
        mapped.train(max_epochs, **progress())
    if latent is not None:
        z = pd.DataFrame(mapped.get_latent_representation(), index=mapped.adata.obs_names)
        with atomic_write(latent) as unfinished:
            z.add_prefix("z").to_csv(unfinished, index_label="cell")
    return save_model(mapped, out, overwrite)


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
    gene_likelihood: Likelihood = "nb",
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
        check_no_results(out, overwrite)
    from trvae import TRVAEMethod
    from trvae.cli._input import as_anndata, read, value_named
    from trvae.cli._results import predict, print_metrics, progress, save_result, summary
    from trvae.evaluation._split import hold_out

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    keys: dict[str, Any] = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "library_key": library_key,
    }
    adata = as_anndata(read(data), modality, layer=layer, **keys)
    conditions, labels = adata.obs.get(condition_key, []), adata.obs.get(labels_key, [])
    target = value_named(to, conditions)
    split = hold_out(
        adata,
        label=value_named(label, labels),
        source_condition=value_named(source, conditions),
        target_condition=target,
        layer=layer,
        **keys,
    )
    method = TRVAEMethod(
        {"gene_likelihood": gene_likelihood}, {"max_epochs": max_epochs} | progress()
    )
    result = predict(split, method, target, seed)
    print_metrics(result.metrics, f"{label} under {to}, never seen in training")
    if out is not None:
        save_result(result, out)
    return summary(result) | {"out": None if out is None else str(out)}
