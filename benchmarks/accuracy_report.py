"""Turn the results of ``benchmarks/accuracy.py`` into ``benchmarks/accuracy.md``.

Run from the root of the repository::

    python benchmarks/accuracy_report.py > benchmarks/accuracy.md
"""

from __future__ import annotations

import json

import pandas as pd
from accuracy import RESULTS, SIMULATIONS, how, read_results

from trvae.metrics._baselines import BASELINES

# Measures, and whether more is better.
MEASURES = {
    "r2_mean": True, "r2_variance": True, "r2_mean_top": True, "r2_variance_top": True,
    "change": True, "change_top": True, "rmse": False, "rmse_weighted": False,
    "rmse_specific": False, "energy_distance": False, "mmd": False, "de_overlap": True,
    "de_direction": True, "de_rank_correlation": True,
}  # fmt: skip
SHOWN = {
    "r2_mean": "R² of means",
    "r2_variance": "R² of variances",
    "change_top": "Pearson correlation of the change, top 100 genes",
    "energy_distance": "Energy distance",
}
# Settings were chosen on these labels.
TUNED_ON = {"kang": ["B", "CD8T", "Dendritic"]}
OWN = "trVAE"
# What makes it a transfer VAE, taken away or as in the paper.
VARIANTS = ["trVAE mmd_weight=0", "trVAE decoder='conditional'"]
RIVALS = [name for name in BASELINES if name != "ceiling"]
TITLES = {
    "kang": "PBMCs under interferon-beta (Kang et al. 2018), 2,000 genes",
    "embedded": "The subset of Kang et al. that ships with the package, 2,000 genes",
    "glioblastoma": "Glioblastoma slices under panobinostat (Zhao et al. 2021), 300 genes",
}


def by_label(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds: one row a label, target and method."""
    measures = [*MEASURES, "coverage_top"]
    return table.groupby(["label", "target", "method"], sort=False)[measures].mean()


def best_rival(means: pd.DataFrame, measure: str) -> pd.Series:
    """The best baseline's value for each label and target, whichever baseline that is."""
    wide = means[measure].unstack("method")[RIVALS]
    return wide.max(axis=1) if MEASURES[measure] else wide.min(axis=1)


def with_averages(rows: pd.DataFrame, tuned_on: list[str]) -> pd.DataFrame:
    """Rows of labels and targets, with the labels that settings were chosen on marked, and means."""
    averages = {"average": rows.mean()}
    if tuned_on:
        others = ~rows.index.get_level_values("label").isin(tuned_on)
        averages["average without *"] = rows[others].mean()
    named = rows.set_axis(
        [f"{label}{' *' if label in tuned_on else ''}, {target}" for label, target in rows.index]
    )
    return pd.concat([named, pd.DataFrame(averages).T]).map("{:.3f}".format)


def print_labels(table: pd.DataFrame, means: pd.DataFrame, tuned_on: list[str]) -> None:
    """The main measures of every label beside the baselines and the ceiling."""
    own = table[table["method"] == OWN].groupby(["label", "target"], sort=False)
    for measure, title in SHOWN.items():
        wide = means[measure].unstack("method")
        rows = wide[[OWN, *RIVALS, "ceiling"]].dropna(subset=OWN)
        low, high = own[measure].min(), own[measure].max()
        spread = [f"{low[k]:.3f} to {high[k]:.3f}" for k in rows.index]
        shown = with_averages(rows, tuned_on)
        shown.insert(1, "seeds", spread + [""] * (len(shown) - len(rows)))
        print(f"### {title}\n\n{shown.to_markdown()}\n")
    if tuned_on:
        print("\\* Settings were chosen on this label.\n")
    print("### Comparison with the best baseline\n")
    for measure, more_is_better in MEASURES.items():
        mine, rival = means[measure].xs(OWN, level="method"), best_rival(means, measure)
        rival = rival[mine.index]
        ahead = (mine > rival) if more_is_better else (mine < rival)
        behind = ", ".join(" ".join(map(str, where)) for where in ahead.index[~ahead])
        print(
            f"- {measure}: ahead for {ahead.sum()} of {len(ahead)}"
            + (f"; behind for {behind}" if behind else "")
        )
    print()


def print_averages(table: pd.DataFrame, means: pd.DataFrame) -> None:
    """All measures of all methods, averaged over the labels that a method was tried on."""
    tried_on = {
        method: tuple(sorted(rows.index.droplevel("method")))
        for method, rows in means.groupby(level="method", sort=False)
    }
    others = [name for name in tried_on if name not in (OWN, *BASELINES)]
    n_seeds = table.groupby("method")["seed"].nunique()
    for where in dict.fromkeys(tried_on.values()):
        methods = [OWN, *(name for name in others if tried_on[name] == where)]
        if where == tried_on["ceiling"]:
            print("### All measures, averaged over labels\n")
            methods += BASELINES
        else:
            print(f"### Other methods and settings, {', '.join(label for label, _ in where)}\n")
        columns = {
            name: means.loc[[(*combination, name) for combination in where]].mean()
            for name in methods
        }
        shown = pd.DataFrame(columns).map("{:.3f}".format)
        shown.loc["seeds"] = [str(n_seeds[name] or "") for name in methods]
        print(shown.to_markdown(), "\n")


def print_variants(table: pd.DataFrame, tuned_on: list[str]) -> None:
    """The main measures of every label without the MMD and with the paper's decoder."""
    seeds = table.loc[table["method"].isin(VARIANTS), "seed"].unique()
    if not len(seeds):
        return
    means = by_label(table[table["seed"].isin(seeds)])
    print(
        "### Without the MMD, and with the paper's decoder\n\n"
        f"Seed {', '.join(str(int(seed)) for seed in seeds)} only.\n"
    )
    columns = {}
    for measure in ("r2_mean", "r2_variance", "energy_distance"):
        wide = means[measure].unstack("method")[[OWN, *VARIANTS]]
        columns[measure] = with_averages(wide, tuned_on)
    shown = pd.concat(columns, axis=1)
    shown.columns = [f"{measure}, {method}" for measure, method in shown.columns]
    print(shown.to_markdown(), "\n")


def print_calibration() -> None:
    """Print how often the intervals of means cover the truth."""
    folder = RESULTS / "calibration"
    if not folder.exists():
        return
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    table = pd.DataFrame(
        {
            row["label"]: {
                f"{genes}, {float(level):.0%}": share
                for level, shares in row.items()
                if level != "label"
                for genes, share in shares.items()
            }
            for row in rows
        }
    ).T
    table.loc["average"] = table.mean()
    print("## Coverage of intervals for predicted means\n")
    print(
        "Share of the genes whose mean in the held-out cells of Kang et al. lies within the "
        "interval of `TRVAE.get_transferred_means`, by the level of the interval. Intervals are too "
        "narrow for the top genes, and for NK and activated T cells.\n"
    )
    print(table.sort_index(axis=1).round(2).to_markdown(), "\n")
    print(f"### Commands and environments\n\n{how(folder)}\n")


def print_simulations() -> None:
    """Averages over the labels and conditions that were held out."""
    measures = [*SHOWN, "rmse", "rmse_specific"]
    rows, hows = {}, []
    for name in SIMULATIONS:
        folder = RESULTS / name.replace(" ", "_")
        if folder.exists():
            table = read_results(folder)
            average = by_label(table).groupby(level="method", sort=False).mean().round(3)
            n_seeds = table.groupby("method")["seed"].nunique()
            for method in [OWN, *BASELINES]:
                seeds = {"seeds": n_seeds[method] or ""}
                rows[f"{name}: {method}"] = dict(average.loc[method, measures]) | seeds
            hows.append(how(folder))
    if rows:
        print("## Simulated data with known effects\n")
        print(pd.DataFrame(rows).T.to_markdown(), "\n")
        print("### Commands and environments\n\n" + "\n".join(hows) + "\n")


def main() -> None:
    """Print the report."""
    print("# Accuracy on held-out cells\n")
    print(
        "The treated cells of each label are held out in turn and predicted from its control cells. "
        "Genes are selected without the held-out cells (the glioblastoma data came with selected "
        "genes). The top genes of a measure are selected with the held-out cells, and are used for "
        "measuring only. The best baseline is chosen separately for each label and measure, knowing "
        "the truth, so no single baseline is as good. The measures are those of "
        "`trvae.metrics.transfer_metrics`. The shifts add the same change to every cell and leave "
        "the variances unchanged, which is why their `de_overlap`, which ranks genes by t, is so "
        "low.\n"
    )
    print(
        "Where trVAE loses:\n\n"
        "- Genes with a strong response: the predicted response lies between that of the label and "
        "that of the other labels. This costs most where a label responds more than all others. It "
        "shows in the error that weights genes by how clearly they change (`rmse_weighted`) and in "
        "the energy distance.\n"
        "- CD14+ monocytes, the hardest label: three in ten treated cells are held out with them, "
        "and only one other label resembles them. The linear and the nearest shift rely on that "
        "label more than the decoder does. Because of CD14+ monocytes, the linear shift has the "
        "lower mean energy distance over the labels on which no setting was chosen.\n"
        "- Log-normalised values (`gene_likelihood='normal'`): the linear shift predicts means "
        "better.\n"
        "- Two simulated lineages with different effects: the nearest shift has the lower energy "
        "distance, because the nearest label is of the same lineage.\n"
        "- No response, or a response of only one of the other labels (simulated below): the model "
        "still predicts a small response, and no change would be the better prediction.\n"
    )
    print(
        "The other tools use the settings of their tutorials and at most 100 epochs; CPA uses its own "
        "early stopping. For scArches' TRVAE, whose tutorial trains for 500 epochs, this shortens "
        "training. Its MMD is on the decoder's first layer, as in the paper. trvaep's trainer reads "
        "copies of the cells and drops a last minibatch of only a few cells.\n"
    )
    for name, title in TITLES.items():
        folder = RESULTS / name
        if not folder.exists():
            continue
        table = read_results(folder)
        means = by_label(table)
        seeds = sorted(int(seed) for seed in table["seed"].dropna().unique())
        print(f"## {title}\n\nMean over seeds {', '.join(map(str, seeds))}.\n")
        print_labels(table, means, TUNED_ON.get(name, []))
        print_averages(table, means)
        print_variants(table, TUNED_ON.get(name, []))
        print(f"### Commands and environments\n\n{how(folder)}\n")
    print_calibration()
    print_simulations()


if __name__ == "__main__":
    main()
