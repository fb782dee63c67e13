"""How fast training, MMD and transfer are, and how much memory they take.

Every measurement is a process of its own, so that its peak memory is its own. Results are kept in
``benchmarks/results/speed``; what is there already is not measured again. Run from the root of the
repository, on an idle machine::

    python benchmarks/speed.py ../shared/data/kang18.h5ad --environments FOLDER
    python benchmarks/speed_report.py > benchmarks/speed.md

``benchmarks/peers/environments.sh`` makes the other tools' environments.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
import torch
from accuracy import QUIET, RESULTS, quiet, read_kang, record_environment
from peers.timing import time_mmd, write_result
from scipy import sparse
from scvi import settings

import trvae
from trvae._mmd import multi_scale_mmd
from trvae._train import TRVAETrainingPlan

OUT = RESULTS / "speed" / "results.jsonl"
WIDTHS, BATCH_SIZE, N_GENES, SEED = (256, 64), 128, 2_000, 0
# Of Kang et al., the fastest of which counts.
N_EPOCHS, N_TRANSFERS = 8, 3
MMD_SHAPES = list(itertools.product((128, 512), (2, 8, 32)))


def prepare_kang(data: Path, folder: Path) -> None:
    """Write all cells of Kang et al. with 2,000 genes, as counts and as log-normalised values."""
    adata, _ = read_kang(data)
    values = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
    sc.pp.highly_variable_genes(values, n_top_genes=N_GENES)
    genes = values.var["highly_variable"].to_numpy()
    for name, cells in (("nb", adata), ("mse", values)):
        cells = ad.AnnData(
            sparse.csr_matrix(cells.X[:, genes]),
            obs={
                "condition": cells.obs["condition"].astype(str).to_numpy(),
                "label": cells.obs["cell_type"].astype(str).to_numpy(),
            },
        )
        cells.write_h5ad(folder / f"kang_{name}.h5ad")


def prepare_simulated(path: Path, n_cells: int, n_conditions: int) -> None:
    """Write counts of which 5 % are not zero."""
    rng = np.random.default_rng(SEED)
    per_cell = N_GENES // 20
    indices = np.sort(
        np.concatenate(
            [rng.integers(0, N_GENES // per_cell, (n_cells, per_cell), dtype=np.int32)]
        ) + np.arange(per_cell, dtype=np.int32) * (N_GENES // per_cell)
    )  # fmt: skip
    counts = rng.poisson(1.0, n_cells * per_cell).astype(np.float32) + 1
    matrix = sparse.csr_matrix(
        (counts, indices.ravel(), np.arange(0, counts.size + 1, per_cell)), (n_cells, N_GENES)
    )
    obs = {
        "condition": np.char.add("c", rng.integers(0, n_conditions, n_cells).astype(str)),
        "label": np.char.add("t", rng.integers(0, 5, n_cells).astype(str)),
    }
    ad.AnnData(matrix, obs=obs).write_h5ad(path)


def registered(path: Path, backed: bool, likelihood: str) -> trvae.TRVAE:
    """Return a model of the cells in a file."""
    adata = ad.read_h5ad(path, backed="r" if backed else None)
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="label")
    return trvae.TRVAE(
        adata,
        hidden_sizes=WIDTHS,
        gene_likelihood="nb" if likelihood == "nb" else "normal",
        seed=SEED,
    )


def seconds_per_epoch(model: trvae.TRVAE, n_epochs: int) -> float:
    """Train and return what the fastest epoch took."""
    starts: list[float] = []

    class Plan(TRVAETrainingPlan):
        def on_train_epoch_start(self):
            starts.append(time.perf_counter())

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            starts[-1] = time.perf_counter() - starts[-1]

    model._training_plan_cls = Plan
    model.train(max_epochs=n_epochs, batch_size=BATCH_SIZE, train_size=1.0, **QUIET)
    return min(starts)


def train(path: Path, likelihood: str, backed: bool, n_epochs: int) -> dict:
    """Measure training through the public API."""
    return {"seconds": seconds_per_epoch(registered(path, backed, likelihood), n_epochs)}


def floor(path: Path, likelihood: str, n_epochs: int) -> dict:
    """Measure a bare loop over dense minibatches in memory: the same network, loss and optimiser."""
    model = registered(path, False, likelihood)
    cells = model.adata
    tensors = {
        "X": torch.as_tensor(cells.X.toarray()),
        "batch": torch.as_tensor(cells.obs["_scvi_batch"].to_numpy()).long()[:, None],
        "labels": torch.as_tensor(cells.obs["_scvi_labels"].to_numpy()).long()[:, None],
    }
    order = torch.randperm(cells.n_obs).split(BATCH_SIZE)
    minibatches = [{name: value[rows] for name, value in tensors.items()} for rows in order]
    module = model.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    seconds = []
    for _ in range(n_epochs):
        start = time.perf_counter()
        for minibatch in minibatches:
            optimizer.zero_grad()
            _, _, output = module(minibatch)
            output.loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds)}


def transfer(path: Path, likelihood: str, to_disk: bool, n_times: int) -> dict:
    """Measure transferring all cells, in memory or to disk; the fastest time counts."""
    model = registered(path, to_disk, likelihood)
    model.train(max_epochs=1, limit_train_batches=20, batch_size=BATCH_SIZE, **QUIET)
    target = model.conditions[0]
    seconds = []
    for _ in range(n_times):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (
                {"out": Path(folder) / "out.zarr", "progress_bar": False} if to_disk else {}
            )
            start = time.perf_counter()
            model.transfer(target_condition=target, batch_size=512, **arguments)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds)}


def mmd() -> dict:
    """Measure the MMD."""
    return time_mmd(lambda y, condition, _: multi_scale_mmd(y, condition), MMD_SHAPES)


MEASUREMENTS = {"train": train, "floor": floor, "transfer": transfer, "mmd": mmd}


def measure(task: dict) -> dict:
    """Run one measurement in a process of its own."""
    environ = os.environ | {"MPLBACKEND": "agg"}
    if "tool" in task:
        python = Path(task["environments"]) / task["tool"] / "bin" / "python"
        script = Path(__file__).parent / "peers" / f"{task['tool']}_speed.py"
        command = [python, script, json.dumps(task)]
    else:
        command = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_task(task: dict) -> None:
    """Measure, in this process, and print the result as JSON."""
    quiet()
    torch.set_num_threads(task["threads"])
    settings.seed = SEED
    path = {"path": Path(task["path"])} if "path" in task else {}
    write_result(MEASUREMENTS[task["measurement"]](**path, **task["arguments"]))


def tasks(folder: Path, environments: Path | None, threads: int) -> dict[str, dict]:
    """Return what to measure, by name."""
    common = {"threads": threads}
    found = {"mmd | trVAE": {"measurement": "mmd", "arguments": {}}}
    for likelihood in ("nb", "mse"):
        path = str(folder / f"kang_{likelihood}.h5ad")
        for name in ("train", "floor"):
            arguments = {"likelihood": likelihood, "n_epochs": N_EPOCHS}
            if name == "train":
                arguments["backed"] = False
            title = "trVAE" if name == "train" else "bare loop"
            found[f"epoch, Kang, {likelihood} | {title}"] = {
                "measurement": name, "path": path, "arguments": arguments,
            }  # fmt: skip
        found[f"transfer, Kang, {likelihood} | trVAE"] = {
            "measurement": "transfer", "path": path,
            "arguments": {"likelihood": likelihood, "to_disk": False, "n_times": N_TRANSFERS},
        }  # fmt: skip
        for tool in ("scarches", "trvaep") if environments else ():
            if (tool, likelihood) != ("trvaep", "nb"):
                found[f"epoch, Kang, {likelihood} | {tool}"] = {
                    "tool": tool, "environments": str(environments), "measurement": "train",
                    "path": path, "arguments": {"likelihood": likelihood, "n_epochs": N_EPOCHS},
                }  # fmt: skip
    # It cannot take a single cell. Of a loop over pairs, a sample tells the time.
    loops = {"scarches": {}, "scarches, by pairs": {"n_at_once": 2, "n_cells": 1000}}
    for name, loop in loops.items() if environments else ():
        found[f"transfer, Kang, nb | {name}"] = {
            "tool": "scarches", "environments": str(environments), "measurement": "transfer",
            "path": str(folder / "kang_nb.h5ad"),
            "arguments": {"likelihood": "nb", **loop},
        }  # fmt: skip
    for tool in ("scarches", "trvaep") if environments else ():
        found[f"mmd | {tool}"] = {
            "tool": tool, "environments": str(environments), "measurement": "mmd",
            "arguments": {"shapes": MMD_SHAPES},
        }  # fmt: skip
    for n_cells, n_conditions in [(10_000, 2), (10_000, 8), (10_000, 32), (100_000, 2),
                                  (1_000_000, 2)]:  # fmt: skip
        path = str(folder / f"simulated_{n_cells}_{n_conditions}.h5ad")
        title = f"{n_cells:,} cells, {n_conditions} conditions"
        for backed in (False, True):
            where = "from disk" if backed else "in memory"
            found[f"epoch, {title}, {where} | trVAE"] = {
                "measurement": "train", "path": path,
                "arguments": {"likelihood": "nb", "backed": backed, "n_epochs": 1},
            }  # fmt: skip
            found[f"transfer, {title}, {where} | trVAE"] = {
                "measurement": "transfer", "path": path,
                "arguments": {"likelihood": "nb", "to_disk": backed, "n_times": 1},
            }  # fmt: skip
    return {name: task | common for name, task in found.items()}


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="kang18.h5ad with all genes")
    parser.add_argument("--environments", type=Path, help="folder of the other tools'")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        run_task(json.loads(arguments.task))
        return
    OUT.parent.mkdir(parents=True, exist_ok=True)
    known = OUT.read_text().splitlines() if OUT.exists() else []
    done = {json.loads(line)["name"] for line in known}
    with tempfile.TemporaryDirectory() as folder:
        environments = arguments.environments and arguments.environments.resolve()
        for name, task in tasks(Path(folder), environments, arguments.threads).items():
            if name in done or arguments.only not in name:
                continue
            path = Path(task.get("path", folder))
            if not path.exists() and path.name.startswith("kang"):
                prepare_kang(arguments.data, Path(folder))
            elif not path.exists():
                n_cells, n_conditions = map(int, path.stem.split("_")[1:])
                prepare_simulated(path, n_cells, n_conditions)
            result = {"name": name, "threads": arguments.threads, **measure(task)}
            with OUT.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(result, flush=True)
    torch.set_num_threads(arguments.threads)
    record_environment(OUT.parent, [], [SEED])


if __name__ == "__main__":
    main()
