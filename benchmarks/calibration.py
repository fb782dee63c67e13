"""How often the intervals of predicted means cover the truth.

The stimulated cells of each cell type of Kang et al. (2018) are held out in turn, and their mean shares
of all counts are compared with the intervals of ``TRVAE.get_transferred_means``. Results are stored in
``benchmarks/results/calibration``; ``benchmarks/accuracy_report.py`` shows them. Run from the root
of the repository::

    python benchmarks/calibration.py ../shared/data/kang18.h5ad
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from accuracy import (
    RESULTS,
    quiet,
    read_kang,
    record_environment,
    store,
    stored_rows,
    trvae_method,
    use_threads,
)

from trvae.evaluation._split import hold_out
from trvae.metrics import log_normalized, rank_changed_genes

LEVELS = [0.5, 0.8, 0.9]
SEED = 0


def covered(adata, label: str, settings: dict) -> dict[str, dict]:
    """Return the shares of genes whose mean is within the interval, by level."""
    split = hold_out(
        adata, condition_key="condition", labels_key="cell_type", label=label,
        target_condition="stimulated", **settings,
    )  # fmt: skip
    method = trvae_method("trVAE")()
    method.fit(split.train, seed=SEED, **split.keys)
    library = split.keys["library_key"]
    share = {
        name: np.ravel((cells.X / cells.obs[library].to_numpy()[:, None]).mean(0))
        for name, cells in (("control", split.control), ("observed", split.observed))
    }
    # The model knows shares of the counts of its own genes.
    truth = share["observed"] / share["control"].sum()
    values = [
        log_normalized(cells, target_sum=1e4, library_key=library)
        for cells in (split.control, split.observed)
    ]
    top = rank_changed_genes(*values)[:100]
    rows = {}
    for level in LEVELS:
        means = method.model.get_transferred_means(
            split.control, "stimulated", library_size=1.0, level=level, seed=SEED
        )
        inside = ((means["low"] <= truth) & (truth <= means["high"])).to_numpy()
        rows[str(level)] = {"top 100 genes": inside[top].mean(), "all genes": inside.mean()}
    return rows


def main() -> None:
    """Run all cell types that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="kang18.h5ad with all genes")
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    quiet()
    adata, settings = read_kang(arguments.data)
    out = RESULTS / "calibration"
    out.mkdir(parents=True, exist_ok=True)
    done = {row["label"] for row in stored_rows(out)}
    for label in adata.obs["cell_type"].cat.remove_unused_categories().cat.categories:
        if label not in done:
            row = {"label": label, **covered(adata, label, settings)}
            store(out, row)
            print(row, flush=True)
    record_environment(out, ["trVAE"], [SEED])


if __name__ == "__main__":
    main()
