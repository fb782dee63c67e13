"""What each setting of the model changes: the basis of the defaults.

Stimulated B cells, CD8 T cells and dendritic cells of Kang et al. (2018) are held out in turn, with
seeds that the report of ``benchmarks/accuracy.py`` does not use. Results are stored in
``benchmarks/results/choices``; existing ones are not computed again. Run from the root of the
repository; several processes (see ``benchmarks/accuracy.py``) can share the work with ``--part``::

    python benchmarks/choices.py ../shared/data/kang18.h5ad
    python benchmarks/choices.py --report > benchmarks/choices.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from accuracy import (
    RESULTS,
    how,
    quiet,
    read_kang,
    read_results,
    record_environment,
    trvae_method,
    use_threads,
)
from scipy.stats import gmean

import trvae

LABELS, SEEDS = ["B", "CD8T", "Dendritic"], [10, 11]
MEASURES = [
    "r2_mean", "r2_variance", "change", "change_top", "rmse", "rmse_specific", "energy_distance",
    "coverage_top",
]  # fmt: skip
# Default first. Each of the others differs from it by what its name says.
SETTINGS = [
    "trVAE",
    "trVAE response_limit=None",
    "trVAE response_limit=1.0",
    "trVAE response_limit=2.0",
    "trVAE linear_weight=0.0",
    "trVAE mmd_weight=0",
    "trVAE decoder='conditional'",
    "trVAE decoder='conditional' mmd_weight=0",
    "trVAE mmd_layer='latent'",
    "trVAE mmd_within_labels=False",
    "trVAE mmd_weight=10",
    "trVAE mmd_weight=1000",
    "trVAE mmd_layer='both'",
    "trVAE transfer.estimate='decoded'",
    "trVAE normalization='batch'",
    "trVAE normalization='none'",
    "trVAE dispersion='gene'",
    "trVAE gene_likelihood='zinb'",
    "trVAE n_latent=5",
    "trVAE n_latent=20",
    "trVAE train.plan_kwargs={'max_kl_weight':0.3}",
    "trVAE train.plan_kwargs={'max_kl_weight':3.0}",
    "trVAE train.plan_kwargs={'n_epochs_kl_warmup':1}",
    "trVAE train.plan_kwargs={'lr':3e-3}",
    "trVAE train.condition_balanced=True",
    "trVAE train.batch_size=512",
    "trVAE dropout_rate=0.0",
    "trVAE dropout_rate=0.2",
    "trVAE hidden_sizes=[512,128]",
    "trVAE hidden_sizes=[128]",
    "trVAE effect_sizes=[16]",
    "trVAE effect_sizes=[64,64]",
    "trVAE gene_likelihood='poisson'",
    "trVAE linear_weight=0.5",
    "trVAE train.max_epochs=20",
    "trVAE train.max_epochs=90",
    "trVAE train.max_epochs=90 train.early_stopping=True",
]


def print_means(rows: pd.DataFrame) -> None:
    """Print the mean over labels as Markdown."""
    # Labels differ too much for a mean over some of them.
    rows = rows.groupby("method").filter(lambda group: set(LABELS) <= set(group["label"]))
    groups = rows.groupby("method", sort=False)
    means = groups[MEASURES].mean()
    # The arithmetic one is that of dendritic cells, whose distance is ten times the others'.
    means["energy_distance, geometric mean"] = groups["energy_distance"].agg(gmean)
    print(means.round(3).to_markdown(), "\n")


def report(out: Path) -> None:
    """Print what is there as Markdown."""
    table = read_results(out)
    print("# Effect of each setting\n")
    print(
        f"Mean over the held-out labels {', '.join(LABELS)}. Settings with `response_limit=None` also "
        "differ from the default in that: compare them with one another.\n\n"
        "All were trained as was the default before, for 4,500 minibatches at a learning rate of 1e-3, before "
        "changes of decoder and labels added up on a logarithmic scale, and with former definitions of "
        "`rmse_specific`, the energy distance and the replicate (then called ceiling).\n"
    )
    for seed in sorted(table["seed"].dropna().astype(int).unique()):
        rows = table[table["seed"].isna() | (table["seed"] == seed)]
        print(f"## Seed {seed}\n")
        print_means(rows)
    print(how(out))


def main() -> None:
    """Run, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="kang18.h5ad with all genes")
    parser.add_argument("--report", action="store_true", help="print the table")
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--part", type=int, nargs=2, default=[0, 1], help="which of how many")
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    out = RESULTS / "choices"
    if arguments.report:
        report(out)
        return
    use_threads(arguments.threads)
    quiet()
    adata, settings = read_kang(arguments.data)
    part, n_parts = arguments.part
    chosen = arguments.settings[part::n_parts]
    record_environment(out, chosen, arguments.seeds)
    trvae.evaluate(
        adata,
        condition_key="condition",
        labels_key="cell_type",
        labels=LABELS,
        methods={name: trvae_method(name) for name in chosen},
        seeds=arguments.seeds,
        out=out,
        **settings,
    )


if __name__ == "__main__":
    main()
