"""How well held-out cells are predicted, on real and on simulated data.

Every label's treated cells are held out in turn, see ``trvae.evaluate``. Results are kept in
``benchmarks/results/<data set>``, from which ``benchmarks/accuracy_report.py`` makes
``benchmarks/accuracy.md``; what is there already is not computed again. Run from the root of the
repository, in several processes with different seeds if there are several cores::

    python benchmarks/accuracy.py kang --data ../shared/data/kang18.h5ad --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import platform
import sys
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import torch

import trvae

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
PACKAGES = ["trvae-tools", "scvi-tools", "torch", "anndata", "scanpy", "numpy", "scipy"]
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def read_kang(path: Path) -> tuple[ad.AnnData, dict]:
    """Kang et al. (2018): eight cell types, control and interferon-beta, 14,053 genes."""
    adata = ad.read_h5ad(path)
    adata = adata[~adata.obs["cell_type"].isin(["Mk", "pDC", "Eryth"])].copy()
    adata.obs["n_counts"] = adata.X.sum(1).A1
    return adata, {"source_condition": "control", "library_key": "n_counts", "n_genes": 2000}


def read_glioblastoma(path: Path) -> tuple[ad.AnnData, dict]:
    """Zhao et al. (2021): slices of five patients, control and panobinostat, 300 genes."""
    return ad.read_h5ad(path), {"source_condition": "ctrl"}


READERS: dict[str, Callable[[Path], tuple[ad.AnnData, dict]]] = {
    "kang": read_kang,
    "glioblastoma": read_glioblastoma,
}


def trvae_method(**model_kwargs) -> Callable[[], trvae.TRVAEMethod]:
    """The model with its default settings but for those given."""
    return functools.partial(trvae.TRVAEMethod, model_kwargs, QUIET)


METHODS = {
    "trVAE": trvae_method(),
    "trVAE without MMD": trvae_method(mmd_weight=0.0),
    "trVAE, paper's decoder": trvae_method(decoder="conditional"),
}


def environment(arguments: argparse.Namespace) -> dict:
    """What the numbers depend on beside the code."""
    return {
        "command": f"python {' '.join(sys.argv)}",
        "date": date.today().isoformat(),
        "methods": arguments.methods,
        "seeds": arguments.seeds,
        "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, "
        f"{platform.platform()}",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=READERS)
    parser.add_argument("--data", type=Path, required=True, help="h5ad file")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["trVAE"])
    parser.add_argument("--labels", nargs="+", help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="of torch, by default all")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)

    adata, settings = READERS[arguments.dataset](arguments.data)
    out = RESULTS / arguments.dataset
    table = trvae.evaluate(
        adata,
        condition_key="condition",
        labels_key="cell_type",
        labels=arguments.labels,
        methods={name: METHODS[name] for name in arguments.methods},
        seeds=arguments.seeds,
        out=out,
        **settings,
    )
    with (out / "environment.jsonl").open("a") as file:
        file.write(json.dumps(environment(arguments)) + "\n")
    print(table.groupby("method", sort=False).mean(numeric_only=True).round(3).T.to_markdown())


if __name__ == "__main__":
    main()
