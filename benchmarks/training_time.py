"""How well held-out cells are predicted after so many seconds of training.

Stimulated B cells, CD8 T cells and dendritic cells of the embedded data are held out in turn, with seeds
that the report of ``benchmarks/accuracy.py`` does not use. Each training is new, so that the KL warm-up and
the number of epochs belong together. "Small steps" is how models were trained before: at a learning rate of
1e-3, from means that have to be learnt, for 4,500 minibatches. The learning rate grows with the square root
of the minibatch's size. "256 cells", of which 288,000 are seen, is the default. Results are stored in
``benchmarks/results/training_time``; existing ones are not computed again. Run from the root of the
repository, on an idle machine::

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
    as_markdown,
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
    "128 cells": (128, 2e-3, True),
    "small steps": (128, 1e-3, False),
    "256 cells": (256, 2.8e-3, True),
    "512 cells": (512, 4e-3, True),
}
CELLS_SEEN = {
    "128 cells": [144_000, 288_000, 576_000],
    "small steps": [288_000, 576_000],
    "256 cells": [288_000],
    "512 cells": [288_000, 576_000],
}


def measure(method: str, n_seen: int, label: str, seed: int) -> dict:
    """Train without a label's stimulated cells, and predict them."""
    adata = trvae.datasets.kang18()
    is_label, condition = adata.obs["cell_type"] == label, adata.obs["condition"]
    held_out = is_label & (condition == "stimulated")
    train = adata[~held_out].copy()
    trvae.TRVAE.setup_anndata(train, **COLUMNS)
    model = trvae.TRVAE(train, seed=seed)
    batch_size, rate, starts_from_mean = METHODS[method]
    n_epochs = round(n_seen / train.n_obs)
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
        "cells seen": n_seen,
        "label": label,
        "seed": seed,
        "seconds": seconds,
        "R2 of means": r2_of_means(*cells),
        "R2 of variances": r2_of_variances(*cells),
    }


def report(rows: pd.DataFrame) -> None:
    """Print means over labels and seeds, and each label's, as Markdown."""
    measures = ["seconds", "R2 of means", "R2 of variances"]
    digits = {"seconds": "{:.0f}".format, **dict.fromkeys(measures[1:], "{:.3f}".format)}
    print(
        "# Accuracy and training time\n\n"
        "How long must training be? Stimulated B, CD8 T and dendritic cells of the embedded data are held "
        f"out in turn. Means over {rows['seed'].nunique()} seeds, on one core while another training "
        "was running on the other.\n\n"
        "- 128, 256 and 512 cells: so many in a minibatch, at a learning rate of 2e-3, 2.8e-3 or 4e-3, from "
        "the mean of the first minibatch. With 256 cells, and 288,000 seen, models are trained by default.\n"
        "- small steps: 128 cells at 1e-3, from means that have to be learnt. With 576,000 cells seen, "
        "this was the default before.\n"
    )
    keys = ["method", "cells seen"]
    rows = rows.assign(**{"cells seen": rows["cells seen"].map("{:,}".format)})
    means = rows.groupby(keys, sort=False)[measures].mean().apply(lambda x: x.map(digits[x.name]))
    print(as_markdown(means.reset_index("cells seen")))
    print("Of each type:\n")
    by_label = rows.pivot_table(measures[1:], keys, "label", sort=False).map("{:.3f}".format)
    by_label.columns = [", ".join(column) for column in by_label.columns]
    print(as_markdown(by_label.reset_index("cells seen")))
    print(how(OUT))


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
    trainings = [(method, n_seen) for method in METHODS for n_seen in CELLS_SEEN[method]]
    for seed, (method, n_seen), label in itertools.product(SEEDS, trainings, LABELS):
        if (method, n_seen, label, seed) not in done:
            store(OUT, measure(method, n_seen, label, seed))


if __name__ == "__main__":
    main()
