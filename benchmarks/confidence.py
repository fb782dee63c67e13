"""Whether low support predicts large errors, and what an ensemble adds.

The stimulated cells of each cell type of Kang et al. (2018) are held out in turn and predicted by an
ensemble of three models and by each model alone. Errors are compared with what
``TRVAEEnsemble.assess_transfer`` reports without the held-out cells. Results are stored in
``benchmarks/results/confidence``; existing ones are not computed again. Run from the root of the
repository::

    python benchmarks/confidence.py ../shared/data/kang18.h5ad
    python benchmarks/confidence.py --report > benchmarks/confidence.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
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
from trvae.evaluation._split import hold_out
from trvae.metrics._baselines import BASELINES

OUT = RESULTS / "confidence"
N_MODELS, SEED = 3, 0
MEASURES = ["r2_mean", "r2_variance", "change_top", "rmse", "energy_distance"]
SIGNALS = ["distance", "supported", "spread", "spread of one model"]


def measure(adata, label: str, settings: dict) -> list[dict]:
    """Return one row for the ensemble, each of its models and each baseline."""
    split = hold_out(
        adata, condition_key="condition", labels_key="cell_type", label=label,
        target_condition="stimulated", **settings,
    )  # fmt: skip
    trvae.TRVAE.setup_anndata(split.train, **split.keys)
    ensemble = trvae.TRVAEEnsemble(split.train, n_models=N_MODELS, seed=SEED)
    ensemble.train(**QUIET)
    (assessed,) = ensemble.assess_transfer(split.control, "stimulated").to_dict("records")
    (alone,) = ensemble.models[0].assess_transfer(split.control, "stimulated").to_dict("records")
    seen = ensemble.assess_transfer(
        split.train[split.train.obs["cell_type"] != label],
        "stimulated",
        source_condition="control",
    )
    rows = []
    methods = {"ensemble": ensemble} | {f"seed {model.seed}": model for model in ensemble.models}
    for name, model in methods.items():
        predicted = model.transfer(split.control, "stimulated", seed=SEED)
        table = split.comparison.table(predicted)
        rows.append({"method": name, **table.loc["prediction", MEASURES]})
    rows += [{"method": name, **table.loc[name, MEASURES].astype(float)} for name in BASELINES]
    signals = assessed | {
        "spread of one model": alone["spread"],
        "supported, seen types": seen["supported"].mean(),
        "distance, seen types": seen["distance"].mean(),
    }
    return [{"label": label, **row, **signals} for row in rows]


def report() -> None:
    """Print what is there as Markdown."""
    table = pd.DataFrame(stored_rows(OUT))
    print("# Can a prediction be trusted?\n")
    print("## An ensemble of three models against single models\n\nMean over cell types.\n")
    table["method"] = table["method"].replace(r"seed \d+", "one model", regex=True)
    means = table.groupby("method", sort=False)[MEASURES].mean()
    print(means.round(3).to_markdown(), "\n")
    for measure_, best in (("r2_mean", "max"), ("r2_variance", "max"), ("energy_distance", "min")):
        wide = table.pivot_table(index="label", columns="method", values=measure_)
        baseline = wide.drop(columns=["ensemble", "one model", "ceiling"], errors="ignore")
        ahead = (wide["ensemble"] - baseline.agg(best, axis=1)) * (1 if best == "max" else -1) > 0
        behind = ", ".join(ahead.index[~ahead]) or "none"
        print(
            f"- {measure_}: the ensemble is ahead of every baseline for {ahead.sum()} of "
            f"{len(ahead)} types; behind for: {behind}"
        )
    ensemble = table[table["method"] == "ensemble"].set_index("label")
    print("\n## Confidence and errors of held-out cell types\n")
    columns = [*SIGNALS, "distance, seen types", "supported, seen types", *MEASURES]
    print(ensemble.sort_values("distance")[columns].round(3).to_markdown(), "\n")
    print("Spearman correlation over cell types:\n")
    errors = ensemble[["rmse", "energy_distance"]].assign(**{"1 - r2_mean": 1 - ensemble.r2_mean})
    correlation = pd.DataFrame(
        {
            error: {signal: ensemble[signal].corr(values, "spearman") for signal in SIGNALS}
            for error, values in errors.items()
        }
    )
    print(correlation.round(2).to_markdown(), "\n")
    print(f"## Commands and environments\n\n{how(OUT)}")


def main() -> None:
    """Run all cell types that are not there yet, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="kang18.h5ad with all genes")
    parser.add_argument("--report", action="store_true", help="print the tables")
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    use_threads(arguments.threads)
    quiet()
    adata, settings = read_kang(arguments.data)
    OUT.mkdir(parents=True, exist_ok=True)
    done = {row["label"] for row in stored_rows(OUT)}
    record_environment(OUT, ["trVAE"], list(range(SEED, SEED + N_MODELS)))
    for label in adata.obs["cell_type"].cat.remove_unused_categories().cat.categories:
        if label not in done:
            rows = measure(adata, label, settings)
            store(OUT, *rows)
            print(*rows[:1], flush=True)


if __name__ == "__main__":
    main()
