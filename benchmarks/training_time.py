"""How well held-out cells are predicted after so many seconds of training.

Stimulated B cells, CD8 T cells and dendritic cells of the embedded data are held out in turn, with seeds
that the report of ``benchmarks/accuracy.py`` does not use. Each training is new, so that the KL warm-up and
the number of epochs belong together. "Small steps" is how models were trained before: at a learning rate of
1e-3, from means that have to be learnt, for 4,500 minibatches. Larger minibatches see as many cells as
smaller ones, with a learning rate that grows with their square root. Results are stored in ``benchmarks/results/training_time``; existing ones are
not computed again. Run from the root of the repository, on an idle machine::

    python benchmarks/training_time.py --threads 1
    python benchmarks/training_time.py --report > benchmarks/training_time.md
"""

from __future__ import annotations

import argparse
import itertools
import time
from contextlib import nullcontext
from unittest.mock import patch

import pandas as pd
from accuracy import (
    QUIET,
    RESULTS,
    how,
    quiet,
    record_environment,
    store,
    stored_rows,
    use_threads,
)

import trvae
from trvae.metrics import log_normalized, median_library_size, r2_of_means, r2_of_variances
from trvae.module import TRVAEModule

OUT = RESULTS / "training_time"
LABELS, SEEDS = ["B", "CD8T", "Dendritic"], [10, 11]
COLUMNS = {"condition_key": "condition", "labels_key": "cell_type", "library_key": "n_counts"}
# Cells in a minibatch, learning rate, and whether the decoder starts from the mean of the first minibatch.
METHODS = {
    "default": (128, 2e-3, True),
    "small steps": (128, 1e-3, False),
    "256 cells": (256, 2.8e-3, True),
    "512 cells": (512, 4e-3, True),
}
# Cells that are seen, in minibatches of 128.
LENGTHS = {
    "default": [1125, 2250, 4500],
    "small steps": [2250, 4500],
    "256 cells": [2250],
    "512 cells": [2250, 4500],
}


def measure(method: str, length: int, label: str, seed: int) -> dict:
    """Train without a label's stimulated cells, and predict them."""
    adata = trvae.datasets.kang18()
    is_label, condition = adata.obs["cell_type"] == label, adata.obs["condition"]
    held_out = is_label & (condition == "stimulated")
    train = adata[~held_out].copy()
    trvae.TRVAE.setup_anndata(train, **COLUMNS)
    model = trvae.TRVAE(train, seed=seed)
    batch_size, rate, starts_from_mean = METHODS[method]
    n_epochs = round(length * 128 / train.n_obs)
    start = time.perf_counter()
    with nullcontext() if starts_from_mean else patch.object(TRVAEModule, "match_means"):
        model.train(n_epochs, batch_size=batch_size, plan_kwargs={"lr": rate}, **QUIET)
    seconds = time.perf_counter() - start
    predicted = model.transfer(adata[is_label & (condition == "control")].copy(), "stimulated")
    observed = adata[held_out]
    scale = {
        "library_key": "n_counts",
        "target_sum": median_library_size(observed, library_key="n_counts"),
    }
    cells = [log_normalized(each, **scale) for each in (predicted, observed)]
    return {
        "method": method,
        "cells seen": length * 128,
        "label": label,
        "seed": seed,
        "seconds": seconds,
        "R2 of means": r2_of_means(*cells),
        "R2 of variances": r2_of_variances(*cells),
    }


def report(rows: pd.DataFrame) -> None:
    """Print the mean over seeds as Markdown."""
    print("# Accuracy and training time\n\nMean over seeds.\n")
    values = ["seconds", "R2 of means", "R2 of variances"]
    means = rows.pivot_table(values, ["method", "cells seen"], "label").swaplevel(axis=1)
    table = means.sort_index(axis=1).round(3)
    table.columns = [" ".join(column) for column in table.columns]
    print(table.reset_index().to_markdown(index=False), "\n")
    seeds = rows.groupby(["method", "cells seen"])["seed"].nunique()
    print(f"Seeds of each: {seeds.min()} to {seeds.max()}.\n\n{how(OUT)}")


def main() -> None:
    """Measure what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true", help="print the table")
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    rows = stored_rows(OUT)
    if arguments.report:
        report(pd.DataFrame(rows))
        return
    use_threads(arguments.threads)
    quiet()
    record_environment(OUT, list(METHODS), SEEDS)
    done = {(row["method"], row["cells seen"], row["label"], row["seed"]) for row in rows}
    trainings = [(method, length) for method in METHODS for length in LENGTHS[method]]
    for seed, (method, length), label in itertools.product(SEEDS, trainings, LABELS):
        if (method, length * 128, label, seed) not in done:
            store(OUT, measure(method, length, label, seed))


if __name__ == "__main__":
    main()
