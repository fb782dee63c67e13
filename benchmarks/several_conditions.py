"""Which weight of the MMD predicts best, and whether that depends on the number of conditions.

``TRVAE`` averages the MMD over pairs of conditions; the paper adds the pairs up. Trained with each weight:

- simulated cells of four types under 2, 8, 20 or 60 conditions, of which a third is held out for one type;
- the donors of Kang et al. (2018), control and stimulated, as 16 conditions. The stimulated cells of one type
  are held out for all donors. Without the data, this part is left out.

Reported is the correlation of the predicted with the true change of log means, for both estimates. Results are
stored in ``benchmarks/results/several_conditions``; existing ones are not computed again. Run from the root of
the repository::

    python benchmarks/several_conditions.py --threads 1 --data ../shared/data/kang18.h5ad
    python benchmarks/several_conditions.py --report > benchmarks/several_conditions.md
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from accuracy import (
    QUIET,
    RESULTS,
    how,
    quiet,
    read_kang,
    record_environment,
    store,
    stored_rows,
    use_threads,
)

import trvae

if TYPE_CHECKING:
    from anndata import AnnData

OUT = RESULTS / "several_conditions"
ESTIMATES = ["counterfactual", "decoded"]
SETTINGS = [
    *((reduction, weight) for weight in (100.0, 10.0, 1000.0) for reduction in ("mean", "sum")),
    ("mean", 0.0),
]
N_SIMULATED, SEEDS = [60, 20, 8, 2], [0, 1]
KANG, KANG_LABELS, KANG_SEEDS = "Kang, 8 donors x 2", ["B"], [0]
# Of a donor and condition, to be compared with.
MIN_CELLS = 10


def change(model: trvae.TRVAE, source: AnnData, target: str, estimate: str, before) -> np.ndarray:
    """Return the predicted change of the log of mean expression per 10,000 counts."""
    after = model.get_transferred_expression(
        source, target, estimate=estimate, library_size=1e4, return_numpy=True
    )
    return np.log1p(after.mean(0)) - np.log1p(before)


def trained(adata: AnnData, reduction: str, weight: float, seed: int, **columns) -> trvae.TRVAE:
    """Return a model with default settings but for the MMD's."""
    adata = adata.copy()
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type", **columns)
    model = trvae.TRVAE(adata, mmd_weight=weight, mmd_reduction=reduction, seed=seed)
    model.train(**QUIET)
    return model


def correlations(predicted: dict, true: dict) -> dict:
    """Return the mean over targets of the correlation with the true change, for each estimate."""
    return {
        estimate: float(
            np.mean([np.corrcoef(predicted[estimate][name], true[name])[0, 1] for name in true])
        )
        for estimate in ESTIMATES
    }


def simulated(n_conditions: int, label: str, reduction: str, weight: float, seed: int) -> dict:
    """Hold out one type under a third of the treatments; the true rates are known."""
    names = ["control", *(f"treatment {i}" for i in range(1, n_conditions))]
    adata = trvae.datasets.simulated(
        n_cells=max(10, 600 // n_conditions),
        n_genes=200,
        n_cell_types=4,
        conditions=names,
        effect_size=1.0,
        seed=seed,
    )
    held_out = names[1 : 1 + max(1, (n_conditions - 1) // 3)]
    is_label = adata.obs["cell_type"] == label
    source = adata[is_label & (adata.obs["condition"] == "control")].copy()
    model = trained(
        adata[~(is_label & adata.obs["condition"].isin(held_out))], reduction, weight, seed
    )
    rates = source.layers["rate"]
    before = (rates / rates.sum(1, keepdims=True)).mean(0) * 1e4
    effects = {name: np.asarray(adata.varm[f"effect_{name}"])[:, 0] for name in held_out}
    return correlations(
        {
            estimate: {name: change(model, source, name, estimate, before) for name in held_out}
            for estimate in ESTIMATES
        },
        {
            name: np.log1p(before * np.exp(effect)) - np.log1p(before)
            for name, effect in effects.items()
        },
    )


def kang(path: Path, label: str, reduction: str, weight: float, seed: int) -> dict:
    """Hold out the stimulated cells of a type; each donor's control is predicted as stimulated."""
    adata, _ = read_kang(path)
    adata = adata[adata.obs["donor"].notna()].copy()
    stimulated = (adata.obs["condition"] == "stimulated").to_numpy()
    donors = adata.obs["donor"].astype(str)
    adata.obs["condition"] = donors + " " + adata.obs["condition"].astype(str)
    held_out = (adata.obs["cell_type"] == label).to_numpy() & stimulated
    train = adata[~held_out].copy()
    sc.pp.highly_variable_genes(train, n_top_genes=1000, flavor="seurat_v3", subset=True)
    adata = adata[:, train.var_names].copy()
    model = trained(train, reduction, weight, seed, library_key="n_counts")
    predicted, true = {estimate: {} for estimate in ESTIMATES}, {}
    for donor in donors.unique():
        cells = adata[(donors == donor) & (adata.obs["cell_type"] == label)]
        is_control = (cells.obs["condition"] == f"{donor} control").to_numpy()
        if min(is_control.sum(), (~is_control).sum()) < MIN_CELLS:
            continue
        means = [
            np.asarray(
                (each.X.multiply(1e4 / each.obs["n_counts"].to_numpy()[:, None])).mean(0)
            ).ravel()
            for each in (cells[is_control], cells[~is_control])
        ]
        true[donor] = np.log1p(means[1]) - np.log1p(means[0])
        for estimate in ESTIMATES:
            predicted[estimate][donor] = change(
                model, cells[is_control].copy(), f"{donor} stimulated", estimate, means[0]
            )
    return correlations(predicted, true)


def report(rows: pd.DataFrame) -> None:
    """Print the mean over labels and seeds as Markdown."""
    print("# The weight of the MMD with several conditions\n")
    print(
        "Correlation of the predicted with the true change of log means, for held-out cells; mean "
        "over seeds. The default is a weight of 100 and the mean over pairs of conditions. With two "
        "conditions there is one pair, so that the mean is the sum. The simulated types all respond "
        "alike, so that no MMD is needed, and too much of it does harm. Of Kang et al., the B cells "
        "of seven or eight donors are held out, whose means are noisy: no prediction can reach 1. "
        "Models were trained with former defaults, 128 cells in a minibatch.\n"
    )
    order = {setting: place for place, setting in enumerate(SETTINGS)}
    place = [order[setting] for setting in zip(rows["reduction"], rows["weight"], strict=True)]
    rows = rows.iloc[pd.Series(place).argsort(kind="stable")].copy()
    rows["MMD"] = rows["weight"].map("{:g}".format) + ", " + rows["reduction"]
    rows.loc[rows["weight"] == 0, "MMD"] = "none"
    for estimate in ESTIMATES:
        table = rows.pivot_table(estimate, "MMD", "cells", sort=False)
        table = table[[f"{n} conditions" for n in sorted(N_SIMULATED)] + [KANG]]
        print(
            f"## {estimate.capitalize()}\n\n{table.round(3).reset_index().to_markdown(index=False)}\n"
        )
    counts = (
        rows.groupby(["cells", "MMD"], sort=False)[ESTIMATES[0]]
        .size()
        .groupby("cells", sort=False)
        .min()
    )
    print(
        "Trainings of each: " + ", ".join(f"{cells}: {n}" for cells, n in counts.items()) + ".\n"
    )
    print(how(OUT))


def main() -> None:
    """Measure what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="kang18.h5ad")
    parser.add_argument("--report", action="store_true", help="print the tables")
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    rows = stored_rows(OUT)
    if arguments.report:
        report(pd.DataFrame(rows))
        return
    use_threads(arguments.threads)
    quiet()
    methods = [f"{reduction} {weight:g}" for reduction, weight in SETTINGS]
    record_environment(OUT, methods, SEEDS)
    work = list(itertools.product(N_SIMULATED, ["type_0"], SETTINGS, SEEDS))
    if arguments.data is not None:
        work += itertools.product([KANG], KANG_LABELS, SETTINGS, KANG_SEEDS)
    done = {
        tuple(row[key] for key in ("cells", "label", "reduction", "weight", "seed"))
        for row in rows
    }
    for cells, label, (reduction, weight), seed in work:
        name = cells if cells == KANG else f"{cells} conditions"
        if (name, label, reduction, weight, seed) in done or (cells == 2 and reduction == "sum"):
            continue
        of = (arguments.data,) if cells == KANG else (cells,)
        measured = (kang if cells == KANG else simulated)(*of, label, reduction, weight, seed)
        row = {
            "cells": name,
            "label": label,
            "reduction": reduction,
            "weight": weight,
            "seed": seed,
        }
        store(OUT, row | measured)


if __name__ == "__main__":
    main()
