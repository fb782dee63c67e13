"""Turn the results of ``benchmarks/accuracy.py`` into ``benchmarks/accuracy.md``.

Run from the root of the repository::

    python benchmarks/accuracy_report.py > benchmarks/accuracy.md
"""

from __future__ import annotations

import pandas as pd
from accuracy import RESULTS, TITLES, TUNED_ON, how, read_results

from trvae.metrics import MEASURES, paired_differences, skill_scores
from trvae.metrics._baselines import BASELINES, REPLICATE

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
    """The measures of every method, averaged over seeds and labels."""
    print("### How well does each method predict?\n\nMean over the held-out labels.\n")
    order = [OWN, *(m for m in table["method"].unique() if m not in (OWN, *BASELINES, REPLICATE))]
    by_label = table.groupby(["method", "label", "target_condition"], sort=False)[[*SHOWN]].mean()
    means = by_label.groupby("method").mean().loc[[*order, *BASELINES, REPLICATE]]
    n_seeds = table.groupby("method")["seed"].nunique().replace(0, "")
    n_labels = by_label.groupby("method").size()
    shown = means.rename(columns=SHOWN).map("{:.3f}".format)
    shown["labels"], shown["seeds"] = n_labels[means.index], n_seeds[means.index]
    print(f"{shown.to_markdown()}\n")


def print_labels(table: pd.DataFrame, tuned_on: list[str]) -> None:
    """Skill scores of the model, label by label."""
    print("### Where is trVAE better than the best baseline, and where worse?\n")
    print(
        "Skill scores: 0 is the best baseline for that label and measure, chosen with the truth at "
        "hand; 1 is another sample of the real cells; below 0, a baseline predicts better. Mean over "
        "seeds, and the standard deviation over seeds in brackets.\n"
    )
    own = skill_scores(table)
    own = own[own["method"] == OWN].groupby(["label", "target_condition"], sort=False)[[*SHOWN]]
    mean, sd = own.mean(), own.std()
    cells = mean.map("{:.2f}".format) + sd.map(" ({:.2f})".format).replace(" (nan)", "")
    several = mean.index.get_level_values("target_condition").nunique() > 1
    cells.index = [
        (f"{label}, {target}" if several else str(label)) + (" *" if label in tuned_on else "")
        for label, target in mean.index
    ]
    averages = {"average": mean.mean()}
    if tuned_on:
        is_new = ~mean.index.get_level_values("label").isin(tuned_on)
        averages["average without *"] = mean[is_new].mean()
    averages = pd.DataFrame(averages).T.map("{:.2f}".format)
    print(pd.concat([cells, averages]).rename(columns=SHOWN).to_markdown(), "\n")
    if tuned_on:
        print("\\* Settings were chosen on this label.\n")


def print_comparison(table: pd.DataFrame) -> None:
    """Whether the model is ahead of the best baselines, in every measure."""
    print("### Is it ahead?\n")
    print(
        "How much smaller its error is than that of the best baseline for each label and measure "
        "(the distance of the measure from its best value), mean over labels with its 95 % interval. "
        "Ahead or behind: the interval excludes 0.\n"
    )
    result = paired_differences(table, OWN)
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
    print(f"{shown.to_markdown()}\n")
    by_single = {
        name: paired_differences(table, OWN, name).loc[[*SHOWN], "verdict"]
        for name in table["method"].unique()
        if name not in (OWN, REPLICATE)
    }
    print("Against each other method and baseline alone:\n")
    print(pd.DataFrame(by_single).T.rename(columns=SHOWN).to_markdown(), "\n")


def former(name: str, baselines: tuple[str, ...]) -> pd.DataFrame:
    """Mean over labels of the measures that are defined as before, of every method."""
    table = read_results(RESULTS / name)
    measures = {name: SHOWN.get(name, "Change") for name in SAME_AS_BEFORE}
    others = table["method"].isin({*BASELINES, "ceiling"} - {*baselines})
    by_label = table[~others].groupby(["method", "label", "target"], sort=False)
    of_all = by_label[SAME_AS_BEFORE].mean().groupby("method", sort=False)
    means = of_all.mean()[of_all.size() == of_all.size().max()]
    shown = means.rename(columns=measures).map("{:.3f}".format)
    shown["seeds"] = table.groupby("method")["seed"].nunique().replace(0, "")[shown.index]
    return shown


def print_former() -> None:
    """Other tools, settings and data, which were run with the former defaults and measures."""
    print("## Other tools, other settings and other data\n")
    print(
        "Run with trVAE's former defaults of training, 4,500 minibatches at a learning rate of 1e-3; only "
        "measures that were defined as they are now. The other tools use the settings of their "
        "tutorials and at most 100 epochs; CPA uses its own early stopping. For scArches' TRVAE, whose "
        "tutorial trains for 500 epochs, this shortens training. Its MMD is on the decoder's first "
        "layer, as in the paper. trvaep's trainer reads copies of the cells and drops a last minibatch "
        "of only a few cells.\n"
    )
    print(f"### {TITLES['kang']}\n\n{former('kang_former', ()).to_markdown()}\n")
    hows = [how(RESULTS / "kang_former")]
    for name, title in TITLES.items():
        folder = name.replace(" ", "_")
        if read(name) is None and (RESULTS / folder).exists():
            print(f"### {title}\n\n{former(folder, BASELINES).to_markdown()}\n")
            hows.append(how(RESULTS / folder))
    print("### Commands and environments\n\n" + "\n".join(hows) + "\n")


def main() -> None:
    """Print the report."""
    print("# Accuracy on held-out cells\n")
    print(
        "The treated cells of each label are held out in turn and predicted from its control cells. "
        "Genes are selected without the held-out cells (the glioblastoma data came with selected "
        "genes). The measures, baselines and the replicate are those of "
        "`trvae.metrics.transfer_metrics`; the guide explains them.\n"
    )
    for name, title in TITLES.items():
        table = read(name)
        if table is None:
            continue
        print(f"## {title}\n")
        print_values(table)
        print_labels(table, TUNED_ON.get(name, []))
        print_comparison(table)
        folder = RESULTS / name.replace(" ", "_")
        print(f"### Commands and environments\n\n{how(folder)}\n")
    print_former()


if __name__ == "__main__":
    main()
