"""What calibration gives: predictions, intervals and expected errors of labels that were held out.

The treated cells of each label are held out in turn. A model is trained without them, predicts them, is
calibrated with the other labels (``TRVAE.calibrate``) and predicts them again. Results are stored in
``benchmarks/results/calibration/<data set>``; existing ones are not computed again. Several processes, for
example with different labels, can share the work. Run from the root of the repository::

    python benchmarks/calibration.py kang --data ../shared/data/kang18.h5ad --threads 1
    python benchmarks/calibration.py spleen --data ../shared/data/spleen_lps.h5ad --threads 1
    python benchmarks/calibration.py radiation --data ../shared/data/hnscc_radiation.h5ad --threads 1
    python benchmarks/calibration.py glioblastoma --data ../shared/data/gbm_panobinostat.h5ad --threads 1
    python benchmarks/calibration.py "no effect" --threads 1
    python benchmarks/calibration.py embedded --threads 1 --epochs 3 12 40
    python benchmarks/calibration.py --report > benchmarks/calibration.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accuracy import (
    QUIET,
    READERS,
    RESULTS,
    TITLES,
    TUNED_ON,
    as_markdown,
    how,
    quiet,
    read,
    record_environment,
    store,
    stored_rows,
    use_threads,
)
from figures import draw_errors

import trvae
from trvae._utils._matrices import dense
from trvae.evaluation._split import HeldOut, hold_out, pairs_to_hold_out
from trvae.metrics import log_normalized, rank_changed_genes
from trvae.metrics._baselines import BASELINES, REPLICATE
from trvae.metrics._normalize import is_counts, library_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT = RESULTS / "calibration"
DATASETS = list(TITLES)
LEVELS = [0.5, 0.8, 0.9]
N_TOP = 100
# Fewer labels have no meaningful rank correlation.
_ENOUGH_FOR_RANKS = 5
CALIBRATED, PLAIN = "calibrated", "default"
SHOWN = {
    "rmse": "RMSE of means",
    "r2_mean": "R² of means",
    "r2_variance": "R² of variances",
    "energy_distance": "Energy distance",
    "rmse_weighted": "Weighted RMSE",
    "change": "Change",
}
# How far a prediction lies from measured means, and its expectation.
ERRORS = {
    "error": "expected error",
    "error_low": "from",
    "error_high": "to",
    "true": "true error",
}


def measure(
    split: HeldOut, target: str, label: str, seed: int, epochs: int | None, folds: Path | None
) -> dict:
    """Predict held-out cells with and without calibration."""
    likelihood = "nb" if is_counts(split.train.X) else "normal"
    method = trvae.TRVAEMethod({"gene_likelihood": likelihood}, {"max_epochs": epochs} | QUIET)
    method.fit(split.train.copy(), seed=seed, **split.keys)
    model, control = method.model, split.control

    def predicted(estimate: str) -> dict:
        cells = model.transfer(control.copy(), target, seed=seed, estimate=estimate)
        return split.comparison.table(cells).loc["prediction"].to_dict()

    measures = split.comparison.rows | {PLAIN: predicted("counterfactual")}
    known = {PLAIN: expected_and_true(model, split, target, label)}
    (source,) = control.obs["condition"].unique()
    left_out = model.calibrate(
        target, source_condition=source, checkpoint_dir=folds, progress_bar=False
    )
    measures |= {CALIBRATED: predicted("counterfactual"), "linear": predicted("linear")}
    known[CALIBRATED] = expected_and_true(model, split, target, label)
    return {
        "label": label,
        "seed": seed,
        "epochs": epochs,
        "weights": left_out.attrs["weights"],
        "left_out": left_out.mean().to_dict(),
        "measures": measures,
        "known": known,
    }


def expected_and_true(model: trvae.TRVAE, split: HeldOut, target: str, label: str) -> dict:
    """Expected error with the true one on its scale, and the coverage of intervals."""
    control, observed, library_key = split.control, split.observed, split.keys["library_key"]
    row = model.assess_transfer(control, target).loc[label]
    expected = model.get_transferred_expression(control, target).to_numpy()
    size = None
    means = [expected.mean(0), dense(observed.X).mean(0)]
    truth = means[1]
    if model.module.is_count_model:
        library = library_sizes(control, None, library_key)
        size = float(np.median(library))
        pairs = (expected, library), (observed.X, library_sizes(observed, None, library_key))
        shares = [(dense(matrix) / of_cells[:, None]).mean(0) for matrix, of_cells in pairs]
        means = [np.log1p(size * share) for share in shares]
        truth = shares[1] * expected.mean(0).sum() / shares[0].sum()
    values = [
        log_normalized(cells, target_sum=size, library_key=library_key)
        for cells in (control, observed)
    ]
    top = rank_changed_genes(*values)[: min(N_TOP, observed.n_vars // 3)]
    coverage = {}
    for level in LEVELS:
        interval = model.get_transferred_means(control, target, level=level)
        inside = ((interval["low"] <= truth) & (truth <= interval["high"])).to_numpy()
        coverage[str(level)] = {"all genes": inside.mean(), "top genes": inside[top].mean()}
    return {
        **row[["error", "error_low", "error_high"]].astype(float).to_dict(),
        "true": float(np.sqrt(np.square(means[0] - means[1]).mean())),
        "coverage": coverage,
        "summary": row["summary"],
    }


def tables(name: str) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Results of a data set, each with its measures by method."""
    for row in stored_rows(OUT / name.replace(" ", "_")):
        yield row, pd.DataFrame.from_dict(row["measures"], orient="index")


def of_data_set(name: str) -> pd.DataFrame:
    """Measures by label and method, averaged over seeds."""
    rows = [
        table[[*SHOWN]].assign(label=row["label"]).rename_axis("method").reset_index()
        for row, table in tables(name)
        if row["epochs"] is None
    ]
    return pd.concat(rows).groupby(["label", "method"], sort=False).mean()


def report_data_set(name: str) -> None:
    """Print one data set."""
    by_label = of_data_set(name)
    labels = by_label.index.get_level_values("label").unique()
    tuned = [label for label in TUNED_ON.get(name, []) if label in labels]
    methods = [CALIBRATED, PLAIN, "linear", *BASELINES, REPLICATE]
    seeds = {row["seed"] for row, _ in tables(name)}
    print(f"## {TITLES[name]}\n\nSeeds: {', '.join(map(str, sorted(seeds)))}.\n")
    groups = {"reported": [label for label in labels if label not in tuned], "tuned on": tuned}
    for title, chosen in groups.items():
        if not chosen:
            continue
        means = by_label.loc[chosen].groupby("method").mean()
        means = means.loc[[method for method in methods if method in means.index]]
        print(f"Mean of labels that are {title}: {', '.join(chosen)}.\n")
        print(as_markdown(means.rename(columns=SHOWN)))
    print(
        "RMSE of means and energy distance of each label; the best baseline is that of the label.\n"
    )
    baselines = by_label[by_label.index.get_level_values("method").isin(BASELINES)]
    columns = {}
    for measure_name in ("rmse", "energy_distance"):
        for method in (CALIBRATED, PLAIN):
            columns[f"{SHOWN[measure_name]}, {method}"] = by_label[measure_name].xs(
                method, level="method"
            )
        best = baselines[measure_name].groupby("label").min()
        columns[f"{SHOWN[measure_name]}, best baseline"] = best
    table = pd.DataFrame(columns)
    table.index = [f"{label} (tuned on)" if label in tuned else label for label in table.index]
    print(as_markdown(table))


def known_of_all() -> pd.DataFrame:
    """Expected and true errors and coverages of all data sets, one row a held-out label."""
    rows = []
    for name in DATASETS:
        for row, _ in tables(name):
            for method, known in row["known"].items():
                covered = {
                    f"{genes}, {float(level):.0%}": share
                    for level, shares in known["coverage"].items()
                    for genes, share in shares.items()
                }
                keys = {
                    "data": name,
                    "label": row["label"],
                    "method": method,
                    "epochs": row["epochs"],
                }
                rows.append(keys | {name: known[name] for name in (*ERRORS, "summary")} | covered)
    return pd.DataFrame(rows)


def report() -> None:
    """Print all tables as Markdown."""
    print("# Calibration with labels that are left out\n")
    print(
        f"`{CALIBRATED}` is the prediction after `TRVAE.calibrate`, `{PLAIN}` before it, `linear` that of "
        '`estimate="linear"`. Everything else is as in `accuracy.md`.\n'
    )
    shown = [name for name in DATASETS if any(row["epochs"] is None for row, _ in tables(name))]
    for name in shown:
        report_data_set(name)
    known = known_of_all()
    usual = known[known["epochs"].isna()]
    is_real = usual["data"].isin(READERS)
    print("## Do intervals hold what they say?\n")
    print(
        "Share of the genes whose measured mean lies within the interval, mean over labels and seeds.\n"
    )
    coverages = [name for name in known if "%" in name]
    print(as_markdown(usual.groupby(["data", "method"], sort=False)[coverages].mean()))
    print("## Is the error as large as expected?\n")
    print("Real data, mean over seeds, calibrated.\n")
    real = usual[is_real & (usual["method"] == CALIBRATED)]
    real = real.groupby(["data", "label"], sort=False)[[*ERRORS]].mean()
    titles = {name: re.split(r" \(| after", TITLES[name])[0] for name in real.index.unique(0)}
    print(
        "![Expected error with its range, and true error, of each held-out label.]"
        f"(../{draw_errors(real, titles)})\n"
    )
    print(as_markdown(real.rename(columns=ERRORS)))
    within = real["true"].between(real["error_low"], real["error_high"])
    print(f"Within the range: {within.sum()} of {len(within)}.", end=" ")
    if len(real) >= _ENOUGH_FOR_RANKS:
        print(
            f"Spearman's correlation: {real.corr('spearman').loc['error', 'true']:.2f}.", end=" "
        )
    print("\n")
    short = known[known["epochs"].notna()]
    if len(short):
        print("## Models that were trained too briefly\n")
        print("The embedded cells, calibrated, and what `assess_transfer` says of NK cells.\n")
        short = short[short["method"] == CALIBRATED].astype({"epochs": int}).set_index("epochs")
        print(as_markdown(short[[*ERRORS]].rename(columns=ERRORS)))
        for epochs, summary in short["summary"].items():
            print(f"- {epochs} epochs: {summary}")
        print()
    folders = [OUT / name.replace(" ", "_") for name in DATASETS]
    print(how(*(folder for folder in folders if folder.exists())))


def main() -> None:
    """Measure what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=DATASETS, nargs="?")
    parser.add_argument("--report", action="store_true", help="print the tables")
    parser.add_argument("--data", type=Path, help="h5ad file, unless the cells are simulated")
    parser.add_argument("--labels", nargs="+", help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[None], help="by default as ever")
    parser.add_argument(
        "--folds", type=Path, help="keep what left-out labels gave, and use it again"
    )
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    use_threads(arguments.threads)
    quiet()
    adata, settings = read(arguments.dataset, arguments.data)
    columns = {"condition_key": "condition", "labels_key": "cell_type"}
    default_labels = settings.pop("labels", None)
    pairs = pairs_to_hold_out(
        adata.obs["cell_type"], adata.obs["condition"], settings["source_condition"],
        arguments.labels or default_labels,
        settings.pop("target_conditions", None),
    )  # fmt: skip
    out = OUT / arguments.dataset.replace(" ", "_")
    record_environment(out, [PLAIN, CALIBRATED], arguments.seeds)
    for seed in arguments.seeds:
        for label, target in pairs:
            for epochs in arguments.epochs:
                done = {(row["label"], row["seed"], row["epochs"]) for row in stored_rows(out)}
                if (label, seed, epochs) not in done:
                    split = hold_out(
                        adata, label=label, target_condition=target, **columns, **settings
                    )
                    row = measure(split, target, label, seed, epochs, arguments.folds)
                    store(out, row)
                    print(
                        label,
                        seed,
                        pd.DataFrame(row["measures"]).T[[*SHOWN][:4]].round(3).to_string(),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
