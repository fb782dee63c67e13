"""Speed and memory of training, MMD and transfer.

Each measurement runs in its own process, which gives its own peak memory. Results are stored in
``benchmarks/results/speed``, with a folder for each run because machines differ; existing ones are not
measured again. Run from the root of the repository, on an idle machine::

    python benchmarks/speed.py ../shared/data/kang18.h5ad --environments FOLDER
    python benchmarks/speed_report.py > benchmarks/speed.md

``benchmarks/peers/environments.sh`` creates the environments of the other tools. Training from annbatch
shards is measured if annbatch is installed and scvi-tools supports it (Python 3.12).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from accuracy import QUIET, RESULTS, quiet, record_environment, store, stored_rows
from gpu_data import plain_mmd
from peers.timing import time_mmd, write_result
from scvi import settings
from speed_data import (
    BATCH_SIZE,
    FOUR_FILES,
    IN_MEMORY,
    ONE_FILE,
    SEED,
    SHARDS,
    model_of,
    prepare_kang,
    prepare_source,
)

from trvae.module._mmd import BANDWIDTHS, multi_scale_mmd
from trvae.train._plan import TRVAETrainingPlan

OUT = RESULTS / "speed"
# Of Kang et al., the fastest of which counts.
N_EPOCHS, N_TRANSFERS = 8, 3
MMD_SHAPES = list(itertools.product((128, 512), (2, 8, 32)))
OF_TWO = [(n, 2) for n in (128, 512, 2048, 4096)]


def train(path: Path, source: str, n_epochs: int, **network: str) -> dict:
    """Train through the public API; the fastest epoch counts."""
    model, cells = model_of(path, source, **network)
    starts: list[float] = []

    class Plan(TRVAETrainingPlan):
        def on_train_epoch_start(self):
            starts.append(time.perf_counter())

        def on_train_epoch_end(self):
            super().on_train_epoch_end()
            starts[-1] = time.perf_counter() - starts[-1]

    model._training_plan_cls = Plan
    model.train(max_epochs=n_epochs, batch_size=BATCH_SIZE, train_size=1.0, **cells, **QUIET)
    return {"seconds": min(starts)}


def floor(path: Path, n_epochs: int, **network: str) -> dict:
    """Measure a bare loop over dense minibatches in memory: the same network, loss and optimiser."""
    model, _ = model_of(path, IN_MEMORY, **network)
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


def transfer(path: Path, likelihood: str, source: str, n_times: int) -> dict:
    """Transfer all cells, in memory or from disk to disk; the fastest time counts."""
    model, _ = model_of(path, source, likelihood)
    model.train(max_epochs=1, limit_train_batches=20, batch_size=BATCH_SIZE, **QUIET)
    target = model.conditions[0]
    seconds = []
    for _ in range(n_times):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (
                {}
                if source == IN_MEMORY
                else {"out": Path(folder) / "out.zarr", "progress_bar": False}
            )
            start = time.perf_counter()
            model.transfer(target_condition=target, batch_size=512, **arguments)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds)}


def mmd() -> dict:
    """Measure the MMD."""
    shapes = dict.fromkeys([*MMD_SHAPES, *OF_TWO])
    return time_mmd(lambda y, condition, _: multi_scale_mmd(y, condition), shapes)


def full_mmd() -> dict:
    """Measure the MMD of two conditions from a full matrix for each bandwidth."""
    return time_mmd(lambda y, condition, _: plain_mmd(y, condition, BANDWIDTHS), OF_TWO)


MEASUREMENTS = {
    "train": train, "floor": floor, "transfer": transfer, "mmd": mmd, "full_mmd": full_mmd,
}  # fmt: skip


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
    found = {
        "mmd | trVAE": {"measurement": "mmd", "arguments": {}},
        "mmd | full matrices": {"measurement": "full_mmd", "arguments": {}},
    }
    for likelihood in ("nb", "mse"):
        path = str(folder / f"kang_{likelihood}.h5ad")
        # The paper's decoder is the other tools', too.
        for decoder, name in itertools.product(("additive", "conditional"), ("train", "floor")):
            arguments = {"likelihood": likelihood, "decoder": decoder, "n_epochs": N_EPOCHS}
            if name == "train":
                arguments["source"] = IN_MEMORY
            title = "trVAE" if name == "train" else "bare loop"
            if decoder == "conditional":
                title += ", paper's decoder"
            found[f"epoch, Kang, {likelihood} | {title}"] = {
                "measurement": name, "path": path, "arguments": arguments,
            }  # fmt: skip
        found[f"transfer, Kang, {likelihood} | trVAE"] = {
            "measurement": "transfer", "path": path,
            "arguments": {"likelihood": likelihood, "source": IN_MEMORY, "n_times": N_TRANSFERS},
        }  # fmt: skip
        for tool in ("scarches", "trvaep") if environments else ():
            if (tool, likelihood) != ("trvaep", "nb"):
                found[f"epoch, Kang, {likelihood} | {tool}"] = {
                    "tool": tool, "environments": str(environments), "measurement": "train",
                    "path": path, "arguments": {"likelihood": likelihood, "n_epochs": N_EPOCHS},
                }  # fmt: skip
    # Of a loop over cells, a sample tells the time.
    loops = {"scarches": {}, "scarches, by cell": {"n_at_once": 1, "n_cells": 1000}}
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
        sources = [IN_MEMORY, ONE_FILE]
        if n_conditions == 2:
            sources.append(FOUR_FILES)
            if importlib.util.find_spec("annbatch"):
                sources.append(SHARDS)
        for source in sources:
            found[f"epoch, {title}, {source} | trVAE"] = {
                "measurement": "train", "path": path,
                "arguments": {"likelihood": "nb", "source": source, "n_epochs": 1},
            }  # fmt: skip
        for source in (IN_MEMORY, ONE_FILE):
            found[f"transfer, {title}, {source} | trVAE"] = {
                "measurement": "transfer", "path": path,
                "arguments": {"likelihood": "nb", "source": source, "n_times": 1},
            }  # fmt: skip
    return {name: task | common for name, task in found.items()}


def main() -> None:
    """Carry out missing runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="kang18.h5ad with all genes")
    parser.add_argument("--environments", type=Path, help="folder of the other tools'")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--only", default="", help="measurements whose name contains this")
    parser.add_argument("--run", default=str(date.today()), help="name, by default the date")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        run_task(json.loads(arguments.task))
        return
    out = OUT / arguments.run
    out.mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in stored_rows(out)}
    with tempfile.TemporaryDirectory() as folder:
        environments = arguments.environments and arguments.environments.resolve()
        for name, task in tasks(Path(folder), environments, arguments.threads).items():
            if name in done or arguments.only not in name:
                continue
            path = Path(task.get("path", folder))
            if not path.exists() and path.name.startswith("kang"):
                prepare_kang(arguments.data, Path(folder))
            elif path.name.startswith("simulated"):
                prepare_source(path, task["arguments"]["source"])
            result = {"name": name, "threads": arguments.threads, **measure(task)}
            store(out, result)
            print(result, flush=True)
    torch.set_num_threads(arguments.threads)
    record_environment(out, [], [SEED])


if __name__ == "__main__":
    main()
