"""Turn the results of ``benchmarks/accuracy.py`` into ``benchmarks/accuracy.md``.

Also draws ``docs/_static/accuracy.png``. Run from the root of the repository::

    python benchmarks/accuracy_report.py > benchmarks/accuracy.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from accuracy import RESULTS, SIMULATIONS, TITLES, TUNED_ON, as_markdown, folded, how, read_results
from figures import saved

from trvae.metrics import MEASURES, paired_differences, skill_scores
from trvae.metrics._baselines import BASELINES, REPLICATE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

OWN = "trVAE"
# One measure of each kind, for tables of labels; the comparison with baselines has all.
SHOWN = {
    "rmse": "RMSE of means",
    "r2_mean": "R² of means",
    "r2_variance": "R² of variances",
    "change_specific": "Change beyond the mean response",
    "energy_distance": "Energy distance",
    "de_recall": "Significant genes that are found",
}
SIMULATED = {name: SHOWN[name] for name in ("rmse", "r2_variance", "energy_distance")}
FORMER = "kang_former"
DESCRIPTION = (
    "Root mean squared error of means and energy distance of each held-out cell type, for trVAE with three "
    "seeds, the best baseline, the mean shift, and another sample of the real cells."
)
# Fewer differences have no meaningful interval.
MIN_LABELS = 3
# Of these, the definition has not changed.
SAME_AS_BEFORE = ["rmse", "r2_mean", "r2_variance", "change"]


def read(name: str) -> pd.DataFrame | None:
    """Results of a data set with today's measures, as ``trvae.evaluate`` returns them."""
    folder = RESULTS / name.replace(" ", "_")
    if not (folder / "results.jsonl").exists():
        return None
    table = read_results(folder).rename(columns={"target": "target_condition"})
    return table if set(MEASURES) <= set(table.columns) else None


def print_values(table: pd.DataFrame) -> None:
    """The measures of the model, the baselines and the replicate, averaged over seeds and labels."""
    labels = ", ".join(map(str, table["label"].unique()))
    print("### How well does it predict?\n")
    print(f"Held out: {labels}. Mean over these and {table['seed'].nunique()} seeds.\n")
    means = means_over_labels(table)
    methods = [name for name in (OWN, *BASELINES, REPLICATE) if name in means.index]
    print(as_markdown(means.loc[methods].rename(columns=SHOWN)))


def means_over_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of each method over labels of the means over seeds."""
    by_label = table.groupby(["method", "label", "target_condition"], sort=False)[[*SHOWN]].mean()
    return by_label.groupby("method", sort=False).mean()


def print_others(table: pd.DataFrame, tuned_on: list[str]) -> None:
    """Other tools and settings, each beside the model with the same labels and seeds."""
    others = set(table["method"].unique()) - {OWN, *BASELINES, REPLICATE}
    settings = sorted(name for name in others if name.startswith(OWN))
    if tools := sorted(others.difference(settings)):
        print("### And other tools?\n")
        print(
            "Each number is followed by trVAE's for the same labels and seeds. The tools use the "
            "settings of their tutorials and at most 100 epochs; CPA its own early stopping. By the clock, "
            "a type took trVAE one minute on one core, scGen 10, CPA 12 to 17, biolord 16 and scPRAM 40, which "
            "was run for NK only.\n\n"
            "Not run: CellFlow, whose tutorial's network is too large for a CPU; CellOT and inVAE, which have "
            "no package. `benchmarks/scperturbench.md` has published numbers of all but CellFlow.\n"
        )
        print_beside(table, tools)
        n_labels = table[table["method"].isin(tools)].groupby("method")["label"].nunique()
        compared = n_labels.index[n_labels == table["label"].nunique()]
        print_verdicts(table, "each tool that was run for all labels", compared, tuned_on)
    if settings:
        print("### And other settings?\n")
        print("Each number is followed by that of the defaults for the same labels and seeds.\n")
        print_beside(table, settings)


def print_beside(table: pd.DataFrame, others: list[str]) -> None:
    """Methods, each beside the model with the same labels and seeds."""
    rows = {}
    for name in others:
        keys = ["label", "target_condition", "seed"]
        runs = table.loc[table["method"] == name, keys]
        same = table.merge(runs, on=keys)
        means = means_over_labels(same).map("{:.3f}".format)
        rows[name] = (means.loc[name] + " / " + means.loc[OWN]).rename(SHOWN).to_dict()
        rows[name] |= {
            "labels": ", ".join(runs["label"].unique()),
            "seeds": runs["seed"].nunique(),
        }
    print(as_markdown(pd.DataFrame(rows).T.astype(str)))


def print_labels(table: pd.DataFrame, tuned_on: list[str]) -> None:
    """Skill scores of the model, label by label."""
    print("### Where is trVAE better than the best baseline, and where worse?\n")
    print("Skill scores.\n")
    own = skill_scores(table)
    own = own[own["method"] == OWN].groupby(["label", "target_condition"], sort=False)[[*SHOWN]]
    mean, sd = own.mean(), own.std()
    cells = mean.map("{:.2f}".format) + sd.map(" ({:.2f})".format).replace(" (nan)", "")
    several = mean.index.get_level_values("target_condition").nunique() > 1
    cells.index = [
        name_of(label, target, several) + (" *" if label in tuned_on else "")
        for label, target in mean.index
    ]
    averages = {"average": mean.mean()}
    if tuned_on:
        is_new = ~mean.index.get_level_values("label").isin(tuned_on)
        averages["average without *"] = mean[is_new].mean()
    averages = pd.DataFrame(averages).T.map("{:.2f}".format)
    print(as_markdown(pd.concat([cells, averages]).rename(columns=SHOWN)))


def name_of(label: str, target: str, several: bool) -> str:
    """What was held out; the condition only if there are several."""
    return f"{label}, {target}" if several else str(label)


def print_intervals(table: pd.DataFrame) -> None:
    """The model's and the baselines' measures with intervals over cells, to be unfolded."""
    errors = [f"{name}_se" for name in SHOWN]
    methods = [name for name in (OWN, *BASELINES) if name in table["method"].unique()]
    by_label = table.groupby(["method", "label", "target_condition"], sort=False)
    means = by_label[[*SHOWN, *errors]].mean().loc[methods]
    several = table["target_condition"].nunique() > 1
    means.index = [
        f"{method}: {name_of(label, target, several)}" for method, label, target in means.index
    ]
    half = 1.96 * means[errors].set_axis([*SHOWN], axis=1)
    cells = means[[*SHOWN]].map("{:.3f}".format) + half.map(" ± {:.3f}".format)
    title = "The measures themselves, with 95 % intervals over cells"
    print(folded(title, as_markdown(cells.rename(columns=SHOWN))))


def draw_labels(table: pd.DataFrame, title: str) -> Path:
    """Two measures of each label, of the model, the baselines and a replicate."""
    measures = ["rmse", "energy_distance"]
    by_label = table.groupby(["label", "method"], sort=False)[measures].mean()
    own = by_label.xs(OWN, level="method").sort_values("energy_distance", ascending=False)
    baselines = by_label[by_label.index.get_level_values("method").isin(BASELINES)]
    shown = {
        "best baseline for each label": ("D", "tab:orange", baselines.groupby("label").min()),
        "mean shift": ("X", "tab:gray", by_label.xs("mean shift", level="method")),
        "another sample of the real cells": (
            "|", "black", by_label.xs(REPLICATE, level="method"),
        ),
    }  # fmt: skip
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, measure in zip(axes, measures, strict=True):
        runs = table[table["method"] == OWN]
        axis.scatter(
            runs[measure],
            runs["label"].map(own.index.get_loc),
            s=28,
            c="tab:blue",
            label=f"{OWN}, each seed",
        )
        for name, (marker, color, values) in shown.items():
            axis.scatter(
                values.loc[own.index, measure],
                range(len(own)),
                s=36,
                marker=marker,
                c=color,
                label=name,
            )
        axis.set(xscale="log", xlabel=f"{SHOWN[measure]} (lower is better)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(own)), own.index)
    figure.suptitle(title, fontsize="medium")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    return saved(figure, "accuracy")


def print_comparison(table: pd.DataFrame, measures: list[str], tuned_on: list[str]) -> None:
    """Whether the model is ahead of the best baselines, and of each, in these measures."""
    print("### Is it ahead?\n")
    result = paired_differences(table, OWN).loc[measures]
    values = result[["advantage", "low", "high", "sd_of_seeds"]].map("{:.3f}".format)
    shown = pd.DataFrame(
        {
            "advantage": values["advantage"],
            "95 % interval": values["low"] + " to " + values["high"],
            "better for": result["n_better"].astype(str) + " of " + result["n"].astype(str),
            "SD over seeds": values["sd_of_seeds"],
            "verdict": result["verdict"],
        }
    )
    if tuned_on:
        without = paired_differences(table[~table["label"].isin(tuned_on)], OWN).loc[measures]
        shown["advantage without *"] = without["advantage"].map("{:.3f}".format)
        shown["verdict without *"] = without["verdict"]
    print(as_markdown(shown))
    print_verdicts(table, "each baseline alone", BASELINES, tuned_on)


def print_verdicts(
    table: pd.DataFrame, title: str, others: Iterable[str], tuned_on: list[str]
) -> None:
    """Whether the model is ahead of each of the others that the table has."""

    def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
        by_other = {
            name: paired_differences(runs, OWN, name).loc[[*SHOWN], "verdict"]
            for name in others
            if name in runs["method"].unique()
        }
        return pd.DataFrame(by_other).T.rename(columns=SHOWN)

    shown = verdicts(table)
    if tuned_on:
        shown += " / " + verdicts(table[~table["label"].isin(tuned_on)])
    followed = "; each verdict is followed by that without labels with *" if tuned_on else ""
    print(f"Against {title}{followed}:\n")
    print(as_markdown(shown))


def print_simulated(tables: dict[str, pd.DataFrame]) -> None:
    """The model and the best baseline on simulated cells, one row a simulation."""
    rows = {}
    for name, table in tables.items():
        means = means_over_labels(table)
        error = (means[[*SIMULATED]] - pd.Series(MEASURES)[[*SIMULATED]]).abs()
        best = error.loc[error.index.isin(BASELINES)].idxmin()
        rows[name] = {
            f"{title}{of}": f"{means.loc[method, measure]:.3f}" + of_best
            for measure, title in SIMULATED.items()
            for of, method, of_best in (
                ("", OWN, ""),
                (", best baseline", best[measure], f" ({best[measure]})"),
            )
        }
    print("## Simulated cells, of which the truth is known\n")
    print(
        "500 genes, three held-out types, one seed. The best baseline is that with the best mean over "
        "the types, chosen for each measure with the truth at hand.\n"
    )
    print(as_markdown(pd.DataFrame(rows).T))


def print_former(since: pd.DataFrame) -> None:
    """Other tools and settings, which were run with the former defaults and measures, and not since."""
    table = read_results(RESULTS / FORMER)
    table = table[~table["method"].isin({*BASELINES, "ceiling", *since["method"]} - {OWN})]
    names = {name: SHOWN.get(name, "Change") for name in SAME_AS_BEFORE}
    by_label = table.groupby(["method", "label"], sort=False)[SAME_AS_BEFORE].mean()
    groups = by_label.groupby("method", sort=False)
    shown = groups.mean()[groups.size() == groups.size().max()]
    shown = shown.rename(columns=names).map("{:.3f}".format)
    shown["seeds"] = table.groupby("method")["seed"].nunique()[shown.index]
    print("## Other tools and settings, all eight types, with an earlier version\n")
    print(
        "trVAE was trained with 4,500 minibatches at a learning rate of 1e-3; only "
        "measures that were defined as they are now. The other tools use the settings of their "
        "tutorials and at most 100 epochs. For scArches' TRVAE, whose "
        "tutorial trains for 500 epochs, this shortens training. Its MMD is on the decoder's first "
        "layer, as in the paper. trvaep's trainer reads copies of the cells and drops a last minibatch "
        "of only a few cells.\n"
    )
    print(as_markdown(shown))


def main() -> None:
    """Print the report."""
    print("# Accuracy on held-out cells\n")
    print(
        "The treated cells of each label are held out in turn and predicted from its control cells. "
        "Genes are selected without the held-out cells (the glioblastoma data came with selected "
        "genes). The measures, baselines and the replicate are those of "
        "`trvae.metrics.transfer_metrics`; the guide explains them.\n\n"
        "- Skill scores: 0 is the best baseline for that label and measure, chosen with the truth at "
        "hand; 1 is another sample of the real cells; below 0, a baseline predicts better. Mean over "
        "seeds, and the standard deviation over seeds in brackets.\n"
        "- Advantage: how much smaller the error is than that of the best baseline for each label and "
        "measure (the distance of the measure from its best value), mean over labels with its 95 % "
        "interval. Ahead or behind: the interval excludes 0.\n"
        "- \\*: settings were chosen on this label.\n"
        "- Genes were called significant with n - 2 degrees of freedom. With those of "
        "`trvae.metrics.welch_degrees_of_freedom`, which came later, values of four types' baselines "
        "differ by at most 0.005, and of the replicate by 0.008.\n"
    )
    tables = {name: table for name in TITLES if (table := read(name)) is not None}
    simulated = {name: table for name, table in tables.items() if name in SIMULATIONS}
    for name, table in tables.items():
        if name in SIMULATIONS:
            continue
        print(f"## {TITLES[name]}\n")
        if name == "kang":
            print(f"![{DESCRIPTION}](../{draw_labels(table, TITLES[name])})\n")
        tuned_on = TUNED_ON.get(name, [])
        print_values(table)
        print_labels(table, tuned_on)
        print_intervals(table)
        if table["label"].nunique() >= MIN_LABELS:
            print_comparison(table, [*(MEASURES if name == "kang" else SHOWN)], tuned_on)
        print_others(table, tuned_on)
    print_simulated(simulated)
    print_former(tables["kang"])
    folders = [RESULTS / name.replace(" ", "_") for name in [*tables, FORMER]]
    print(how(*folders))


if __name__ == "__main__":
    main()
