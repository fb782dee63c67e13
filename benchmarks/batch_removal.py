"""What is left of batches, and of all else, once cells are predicted as if of one batch.

Run from the root of the repository; it takes a few minutes::

    python benchmarks/batch_removal.py > benchmarks/batch_removal.md
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from accuracy import QUIET, quiet, use_threads

import trvae

COLUMNS = {"batch": "batches", "cell_type": "cell types", "condition": "conditions"}
SEEDS = range(3)
LIBRARY = 1_000.0


def difference(values: np.ndarray, obs: pd.DataFrame, key: str) -> float:
    """Root mean square, over genes, of how groups that share all else differ in a column."""
    others = [column for column in COLUMNS if column != key]
    differences = []
    for rows in obs.groupby(others, observed=True).indices.values():
        first, second = obs[key].cat.categories[:2]
        of = obs[key].iloc[rows].to_numpy()
        differences.append(values[rows][of == first].mean(0) - values[rows][of == second].mean(0))
    return float(np.sqrt(np.mean(np.square(differences))))


def main() -> None:
    """Print the table."""
    quiet()
    use_threads(2)
    cells = trvae.datasets.simulated(
        n_cells=200, n_genes=500, n_cell_types=4, n_batches=2, mean_library_size=LIBRARY
    )
    cells.obs = cells.obs.astype(dict.fromkeys(COLUMNS, "category"))
    before = trvae.metrics.log_normalized(cells, target_sum=LIBRARY)
    rows = []
    for covariates in (["condition"], None):
        for seed in SEEDS:
            trvae.TRVAE.setup_anndata(
                cells,
                condition_key="batch",
                labels_key="cell_type",
                categorical_covariate_keys=covariates,
            )
            model = trvae.TRVAE(cells, seed=seed)
            model.train(**QUIET)
            target = model.conditions[0]
            normalized = model.get_normalized_expression(cells, transform_batch=target)
            values = {
                "`transfer`": trvae.metrics.log_normalized(
                    model.transfer(cells, target), target_sum=LIBRARY
                ),
                "`get_normalized_expression`": np.log1p(LIBRARY * normalized.to_numpy()),
            }
            registered = "a covariate" if covariates else "not registered"
            for method, after in values.items():
                left = {
                    name: difference(after, cells.obs, key) / difference(before, cells.obs, key)
                    for key, name in COLUMNS.items()
                }
                rows.append({"": method, "conditions are": registered, **left})
    table = pd.DataFrame(rows).groupby(["", "conditions are"], sort=False).median()
    print(table.reset_index().to_markdown(index=False, floatfmt=".2f"))


if __name__ == "__main__":
    main()
