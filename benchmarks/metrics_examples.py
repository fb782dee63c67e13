"""The numbers in the guide to the metrics, from a simulated experiment and from arithmetic.

1,000 genes of six cell types, with 300 cells per type and condition. The treated cells of the first type
are held out, and predictions of them are constructed from the known truth, see ``docs/guide/metrics.md``.
Takes about two minutes on one core. Run from the root of the repository::

    python benchmarks/metrics_examples.py --threads 1 > benchmarks/metrics_examples.md
"""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from accuracy import environment, folded, quiet, use_threads
from anndata import AnnData
from scipy.stats import norm

from trvae.metrics import (
    MEASURES,
    coverage,
    energy_distance,
    log_normalized,
    maximum_mean_discrepancy,
    median_library_size,
    paired_differences,
    rmse_of_log_fold_changes,
    skill_scores,
    transfer_metrics,
    wasserstein_distance,
    welch_t,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    # Measure, what is compared, and value.
    Row = tuple[str, str, str]

N_GENES, N_TYPES, N_CELLS, N_TOP = 1_000, 6, 300, 100
# Genes that respond in most types, the share of them that each type leaves out, and genes of each type alone.
N_SHARED, SHARE_LEFT_OUT, N_OWN = 55, 0.1, 20
# Repetitions of the experiment, those for which standard errors are estimated, and resamples for these.
N_EXPERIMENTS, N_WITH_ERRORS, N_BOOTSTRAP = 25, 5, 10
# Constructed predictions, and experiments, that are named more than once.
NEW, COPIES = "new cells", "copies of the mean"
LESS_VARIABLE = "new cells, the least variable quarter of the top genes without variance"
RIGHT_IN_20 = "full shift of the 20 genes with most weight"
MOVED = "mean shift, a tenth of the way to the observed mean"
OWN_UNCHANGED = f"new cells, the {N_OWN} genes in which only this type responds unchanged"
FALSE_POSITIVES = "new cells, 50 genes that don't respond raised by 0.5"
RARE_RAISED = "new cells, a rare gene raised by 2"
UNCHANGED, WEAK = "nothing changes", "half the response"


class Truth(NamedTuple):
    """What cells are drawn from, on the logarithmic scale of their rates."""

    profiles: np.ndarray
    """``n_types x n_genes``."""
    effects: np.ndarray
    """Log fold changes, ``n_types x n_genes``."""
    programs: np.ndarray
    """How genes vary together between cells of a type, ``n_programs x n_genes``."""
    inverse_dispersions: np.ndarray
    """``n_genes``."""

    def counts(self, cell_type: int, treated: bool, n: int, rng: np.random.Generator) -> AnnData:
        """Draw negative-binomial counts of so many cells."""
        log_rate = self.profiles[cell_type] + treated * self.effects[cell_type]
        log_rate = log_rate + rng.normal(size=(n, len(self.programs))) @ self.programs
        rate = np.exp(log_rate)
        rate *= rng.lognormal(np.log(3_000), 0.3, (n, 1)) / rate.sum(1, keepdims=True)
        rate = rng.gamma(self.inverse_dispersions, rate / self.inverse_dispersions)
        condition = "treated" if treated else "control"
        obs = {"cell_type": [str(cell_type)] * n, "condition": [condition] * n}
        names = [f"{cell_type} {condition} {i}" for i in range(n)]
        return AnnData(rng.poisson(rate).astype(float), pd.DataFrame(obs, names))


def draw_truth(rng: np.random.Generator) -> Truth:
    """Cell types that share most of their response."""
    profiles = rng.normal(0, 1.2, N_GENES) + rng.normal(0, 0.5, (N_TYPES, N_GENES))
    genes = rng.permutation(N_GENES)[: N_SHARED + N_TYPES * N_OWN]
    effects = np.zeros((N_TYPES, N_GENES))
    responds = rng.random((N_TYPES, N_SHARED)) >= SHARE_LEFT_OUT
    effects[:, genes[:N_SHARED]] = log_fold_changes(rng, 0.9, N_SHARED) * responds
    for effect, own in zip(effects, genes[N_SHARED:].reshape(N_TYPES, N_OWN), strict=True):
        effect[own] = log_fold_changes(rng, 0.5, N_OWN)
    programs = rng.normal(0, 0.15, (3, N_GENES))
    return Truth(profiles, effects, programs, 0.3 + rng.gamma(2, 2, N_GENES))


def log_fold_changes(rng: np.random.Generator, size: float, n: int) -> np.ndarray:
    """Up or down, on average of this size."""
    return rng.choice([-1, 1], n) * rng.gamma(4, size / 4, n)


class Experiment:
    """Cells of all types and conditions; the treated ones of the first are to be predicted."""

    def __init__(self, truth: Truth, rng: np.random.Generator):
        self.truth, self.rng = truth, rng
        pairs = itertools.product(range(N_TYPES), (False, True))
        groups = [truth.counts(*pair, N_CELLS, rng) for pair in pairs]
        self.control, self.observed, *others = groups
        counts = np.concatenate([group.X for group in others])
        self.reference = AnnData(counts, pd.concat([group.obs for group in others]))
        self.target_sum = median_library_size(self.control)
        # Log-normalised values, n_cells x n_genes.
        self.before, self.after, *others = map(self.values, groups)
        pairs = zip(others[::2], others[1::2], strict=True)
        self.other_changes = np.array([after.mean(0) - before.mean(0) for before, after in pairs])

    def values(self, cells: AnnData) -> np.ndarray:
        """Log-normalised values, ``n_cells x n_genes``."""
        return log_normalized(cells, target_sum=self.target_sum)

    def new(self, n: int = N_CELLS, *, treated: bool = True) -> np.ndarray:
        """Values of new cells of the first type."""
        return self.values(self.truth.counts(0, treated, n, self.rng))

    def true_mean(self, *, treated: bool) -> np.ndarray:
        """Mean of 30,000 new cells."""
        return np.mean([self.new(2_000, treated=treated).mean(0) for _ in range(15)], axis=0)

    def table(self, predicted: np.ndarray, **settings: Any) -> pd.DataFrame:
        """Compare predicted values, as the row NEW, beside the baselines and the replicate."""
        defaults = {
            "observed": self.observed,
            "reference": self.reference,
            "condition_key": "condition",
            "labels_key": "cell_type",
            "source_condition": "control",
            "target_condition": "treated",
        }
        cells = AnnData(predicted, uns={"log1p": {"target_sum": self.target_sum}})
        table = transfer_metrics(cells, control=self.control, **(defaults | settings))
        return table.rename({"prediction": NEW})


class Predictions:
    """Predictions of an experiment, constructed from the truth."""

    def __init__(self, experiment: Experiment):
        self.experiment, rng = experiment, experiment.rng
        control, observed = experiment.before, experiment.after
        mean = experiment.true_mean(treated=True)
        change = mean - experiment.true_mean(treated=False)
        new, unchanged = experiment.new(), experiment.new(treated=False)
        self.t = welch_t(control, observed, one_count=np.log(2))
        ranked = np.argsort(-np.abs(self.t))
        top, in_20 = ranked[:N_TOP], np.isin(np.arange(N_GENES), ranked[:20])
        least_variable = top[np.argsort(new[:, top].var(0))[: N_TOP // 4]]
        effects = experiment.truth.effects
        own = np.flatnonzero((effects[0] != 0) & (effects[1:] == 0).all(0))
        unresponsive = np.setdiff1d(np.flatnonzero(effects[0] == 0), top)
        mean_shift = np.maximum(control + experiment.other_changes.mean(0), 0)
        to_observed = observed.mean(0) - mean_shift.mean(0)
        self.mean = mean
        self.values = {
            NEW: new,
            COPIES: np.tile(mean, (N_CELLS, 1)),
            "full shift": np.maximum(control + change, 0),
            "half shift": np.maximum(control + change / 2, 0),
            "half the variance": mean + (new - mean) * np.sqrt(0.5),
            "shuffled": rng.permuted(observed, axis=0),
            "observed cells, values halved": observed / 2,
            LESS_VARIABLE: replaced(new, least_variable, new.mean(0)),
            RIGHT_IN_20: np.maximum(control + change * in_20, 0),
            "a tenth of the change": np.maximum(control + change / 10, 0),
            MOVED: mean_shift + 0.1 * to_observed,
            OWN_UNCHANGED: replaced(new, own, unchanged),
            FALSE_POSITIVES: replaced(new, rng.choice(unresponsive, 50, replace=False), new + 0.5),
            RARE_RAISED: replaced(new, [mean.argmin()], new + 2),
            "30 new cells": new[:30],
            "50 new cells": new[:50],
            "50 copies of the mean": np.tile(mean, (50, 1)),
        }
        tables = {name: experiment.table(values) for name, values in self.values.items()}
        rows = {name: table.loc[NEW] for name, table in tables.items()}
        self.table = pd.concat([pd.DataFrame(rows).T, tables[NEW].drop(NEW)])


def replaced(cells: np.ndarray, genes: Any, by: np.ndarray) -> np.ndarray:
    """Cells with the values of some genes replaced by others."""
    result = cells.copy()
    result[:, genes] = by[..., genes]
    return result


def stated(
    table: pd.DataFrame, measure: str, *methods: str, digits: str = ".2f", where: str = ""
) -> Iterator[Row]:
    """A measure of some rows of a table, and where it is from."""
    for method in methods:
        name = f"{where}: {method}" if where else method
        yield measure, name, f"{table.loc[method, measure]:{digits}}".replace("nan", "NaN")


def of_means_and_variances(predictions: Predictions) -> Iterator[Row]:
    """Section "Means and variances"."""
    table = predictions.table
    yield from stated(table, "r2_mean", "no change", "half shift")
    for measure in ("r2_mean_top", "rmse"):
        yield from stated(table, measure, "observed cells, values halved")
    yield from stated(table, "r2_variance", "half the variance", NEW, COPIES)
    yield from stated(table, "r2_variance_top", NEW, LESS_VARIABLE, "full shift")
    yield from stated(table, "rmse", COPIES, "replicate", digits=".3f")
    weights = np.sort(predictions.t**2)[::-1]
    yield "rmse_weighted", "weight of 20 genes", f"{weights[:20].sum() / weights.sum():.0%}"
    yield from stated(table, "rmse_weighted", RIGHT_IN_20, "mean shift")
    for before, after in ((0.3, 3), (100, 200)):
        # Both have 10,000 counts.
        others = [np.full(N_GENES - 1, (1e4 - own) / (N_GENES - 1)) for own in (before, after)]
        profiles = np.c_[[before, after], others]
        cost = rmse_of_log_fold_changes(*np.log1p(profiles)[:, None])
        yield "rmse_log_fold_change", f"a gene at {after} instead of {before}", f"{cost:.2f}"
    yield from stated(table, "rmse_log_fold_change", COPIES, NEW)


def of_changes(
    predictions: Predictions, unchanged: pd.DataFrame, weak: pd.DataFrame
) -> Iterator[Row]:
    """Sections "Changes" and "What is a label's own"."""
    table = predictions.table
    yield from stated(table, "change", "half shift", NEW)
    for measure in ("change_top", "change"):
        yield from stated(unchanged, measure, NEW, "no change", where=UNCHANGED)
    yield from stated(weak, "change_specific", "no change", NEW, where=WEAK)
    yield from stated(table, "discrimination", "mean shift", MOVED, digits=".1f")
    for measure in ("rmse_specific", "rmse"):
        yield from stated(table, measure, NEW, OWN_UNCHANGED, digits=".3f")


def of_distances(predictions: Predictions) -> Iterator[Row]:
    """Section "Distances between groups of cells"."""
    table, experiment = predictions.table, predictions.experiment
    yield from stated(table, "wasserstein", "shuffled")
    rare = predictions.mean < 0.1
    observed = experiment.after[:, rare]
    of_rare_genes = {
        "normal noise": experiment.rng.normal(observed.mean(0), observed.std(0), observed.shape),
        COPIES: np.tile(predictions.mean[rare], (N_CELLS, 1)),
        "zeros": np.zeros_like(observed),
    }
    for name, values in of_rare_genes.items():
        distance = wasserstein_distance(values, observed)
        yield "wasserstein", f"{rare.sum()} genes with a mean below 0.1: {name}", f"{distance:.2f}"
    yield from stated(table, "energy_distance", COPIES, "half shift", "no change", digits=".1f")
    normal = normal_values(2_000)[:, None]
    for spread in (2.5, 1):
        distance = energy_distance(2 + spread * normal, normal)
        name = f"mean off by 2, {spread} times the right spread"
        yield "energy_distance", name, f"{distance:.1f}"
    yield from stated(table, "energy_distance_genes", "30 new cells", NEW)
    for measure in ("energy_distance_top", "energy_distance_genes"):
        yield from stated(table, measure, NEW, FALSE_POSITIVES)
    group = np.array(list(itertools.product(normal_values(50), repeat=2)))
    for distance in (10, 100):
        mmd = maximum_mean_discrepancy(group + [distance, 0], group)
        yield "mmd", f"normal groups {distance} standard deviations apart", f"{mmd:.2f}"
    yield from stated(table, "mmd_genes", "half shift", "no change", COPIES, digits=".3f")
    yield from stated(table, "mmd_top", NEW, FALSE_POSITIVES, digits=".3f")
    for measure in ("energy_distance", "energy_distance_genes"):
        yield from stated(table, measure, NEW, RARE_RAISED, "shuffled", "replicate")
    alone = experiment.table(predictions.values[NEW], reference=None)
    yield from stated(alone, "energy_distance", NEW, "replicate", where="without a reference")


def normal_values(n: int) -> np.ndarray:
    """Values of which as many lie between any two numbers as the normal distribution says."""
    return norm.ppf((np.arange(n) + 0.5) / n)


def of_spread_and_genes(predictions: Predictions, unchanged: pd.DataFrame) -> Iterator[Row]:
    """Sections "Spread" and "Differentially expressed genes"."""
    table, experiment = predictions.table, predictions.experiment
    normal = normal_values(20_000)[:, None]
    for spreads in ([2], [0.78], [2, 0.78]):
        covered = coverage(normal * spreads, normal * np.ones(len(spreads)))
        name = " and ".join(map(str, spreads))
        yield "coverage_top", f"{name} times the right spread", f"{covered:.1%}"
    yield from stated(unchanged, "de_overlap", NEW, "all genes", where=UNCHANGED)
    yield from stated(table, "de_precision", NEW)
    few = experiment.table(predictions.values[NEW], observed=experiment.observed[:50])
    yield from stated(few, "de_precision", NEW, where="50 observed cells")
    yield from stated(table, "de_recall", NEW, "50 new cells", "50 copies of the mean")
    for measure in ("de_direction", "de_recall"):
        yield from stated(table, measure, "a tenth of the change")
    yield from stated(table, "de_rank_correlation", "half shift", "full shift", NEW)
    yield from stated(unchanged, "de_rank_correlation", NEW, where=UNCHANGED)


def of_baselines_and_skill(
    predictions: Predictions, unchanged: pd.DataFrame, weak: pd.DataFrame
) -> Iterator[Row]:
    """Sections "Baselines and the replicate" and "Skill scores"."""
    yield from stated(predictions.table, "change_specific", "mean shift")
    yield from stated(predictions.table, "rmse", COPIES, "replicate", digits=".3f")
    yield from stated(unchanged, "change", "replicate", NEW, where=UNCHANGED)
    skill = skill_scores(predictions.table)
    yield from stated(skill, "change", "half shift", where="skill")
    yield from stated(skill, "rmse", "half shift", COPIES, where="skill")
    yield from stated(skill, "energy_distance", COPIES, digits=".1f", where="skill")
    yield from stated(weak, "discrimination", "no change", "replicate", digits=".1f", where=WEAK)
    yield from stated(skill_scores(weak), "discrimination", NEW, where=f"{WEAK}, skill")
    name = "0.055 if the best baseline has 0.0505 and the replicate 0.05"
    errors = {name: 0.055, "mean shift": 0.0505, "replicate": 0.05}
    skill = skill_scores(only_rmse(errors.values()).set_index(pd.Index(errors)))
    yield from stated(skill, "rmse", name, digits=".0f", where="skill")


def only_rmse(values: Iterable[float]) -> pd.DataFrame:
    """A table without other measures."""
    return pd.DataFrame(dict.fromkeys(MEASURES, np.nan) | {"rmse": list(values)})


def of_errors(experiment: Experiment) -> Iterator[Row]:
    """Section "Standard errors and paired differences"."""
    tables = []
    for i in range(N_EXPERIMENTS):
        again = Experiment(experiment.truth, experiment.rng)
        n_bootstrap = N_BOOTSTRAP if i < N_WITH_ERRORS else 0
        tables.append(again.table(again.new(), n_bootstrap=n_bootstrap))
    rows = pd.concat(tables).groupby(level="method")
    spread, errors = rows[list(MEASURES)].std(), rows[[f"{name}_se" for name in MEASURES]].mean()
    errors.columns = list(MEASURES)
    ratio = (spread / errors).loc["no change"].filter(regex="wasserstein|energy|mmd")
    is_top = ratio.index.str.endswith("_top")
    groups = {"distances": ratio[~is_top], "distances, top genes": ratio[is_top]}
    for name, of_group in groups.items():
        between = f"{of_group.min():.1f} to {of_group.max():.1f}"
        yield name, "no change: standard deviation of experiments / standard error", between
    statistics = {"standard deviation of experiments": spread, "standard error": errors}
    for measure in ("energy_distance_genes", "de_rank_correlation"):
        for name, table in statistics.items():
            yield measure, f"{NEW}: {name}", f"{table.loc[NEW, measure]:.3f}"
    advantages = [0.004, 0.012, 0.001, 0.009]
    for name, values in {"four labels": advantages, "eight labels": 2 * advantages}.items():
        table = only_rmse([*values, *np.zeros(len(values))])
        table["method"] = np.repeat(["other", "own"], len(values))
        table["label"] = np.tile(range(len(values)), 2)
        row = paired_differences(table, "own", "other").loc["rmse"]
        interval = f"{row['verdict']}, {row['low']:.3f} to {row['high']:.3f}"
        yield "paired difference", f"{name}: {', '.join(map(str, values))}", interval


def main() -> None:
    """Print all numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    quiet()
    rng = np.random.default_rng(arguments.seed)
    truth = draw_truth(rng)
    predictions = Predictions(Experiment(truth, rng))
    halves = np.where(np.arange(N_TYPES) == 0, 0.5, 1)[:, None]
    weak, unchanged = (
        Experiment(truth._replace(effects=strength * truth.effects), rng)
        for strength in (halves, 0)
    )
    of_weak, new = weak.table(weak.new()), unchanged.new()
    of_unchanged = unchanged.table(new)
    of_unchanged.loc["all genes"] = unchanged.table(new, n_top_genes=N_GENES).loc[NEW]
    rows = [
        ("genes", "that respond in the held-out type", str(np.count_nonzero(truth.effects[0]))),
        *of_means_and_variances(predictions),
        *of_changes(predictions, of_unchanged, of_weak),
        *of_distances(predictions),
        *of_spread_and_genes(predictions, of_unchanged),
        *of_baselines_and_skill(predictions, of_unchanged, of_weak),
        *of_errors(predictions.experiment),
    ]
    table = pd.DataFrame(rows, columns=["measure", "of", "value"])
    print(
        "# Numbers in the guide to the metrics\n\n"
        "The guide explains them, in the same order. They are of one simulated experiment, of two others "
        f'("{UNCHANGED}" and "{WEAK}" of the held-out type), and of arithmetic.\n'
    )
    alignment = ["left", "left", "right"]
    print(table.to_markdown(index=False, disable_numparse=True, colalign=alignment) + "\n")
    print(how_now(arguments.seed), end="")


def how_now(seed: int) -> str:
    """The command with seed, versions and machine, as Markdown that unfolds."""
    record = environment()
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    line = f"- {record['date']}, seed {seed}: `{record['command']}`"
    return folded("Command and environment", f"{record['machine']}; {versions}:", line)


if __name__ == "__main__":
    main()
