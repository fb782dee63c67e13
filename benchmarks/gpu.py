"""Speed and memory on a GPU: training, the MMD, transfer, latent representations, the demo.

All rows are measured in one run, with simulated cells and those that ship with the package. Each is
printed and stored as soon as it is there, as JSON and, beside it, as Markdown. A row that fails has its
error as result. Run from the root of the repository, on an idle machine with a GPU::

    python benchmarks/gpu.py --out benchmarks/results/gpu/<date>.json
    python benchmarks/speed_report.py > benchmarks/speed.md

``--small`` proves within a minute, also without a GPU, that the rows run; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import time
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# CUPTI, which the profiler reads, can crash if it is loaded again between replays of a CUDA graph.
os.environ |= {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}

import numpy as np
import scvi
import torch
from accuracy import quiet
from gpu_data import (
    ACCELERATOR,
    DEVICE,
    N_WARM,
    QUIET,
    SEED,
    EpochClock,
    bare_loop,
    briefly_trained,
    cells,
    clock,
    model_of,
    of_epoch,
    plain_mmd,
    seconds_of,
)
from gpu_record import environment_with_gpu, markdown

import trvae
from trvae.cli._demo import stimulated_nk_cells
from trvae.evaluation._split import predict_held_out
from trvae.module._mmd import BANDWIDTHS, multi_scale_mmd
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_MEASURED = 3
HAS_DATA_ON_DEVICE = "data_on_device" in inspect.signature(trvae.TRVAE.train).parameters


class Sizes(NamedTuple):
    """How much is measured."""

    n_genes: int
    kang: int
    """Cells of a data set like that of Kang et al."""
    many: int
    latent: tuple[int, ...]
    """Cells to represent, besides ``many``."""
    mmd: tuple[int, ...]
    demo: dict
    """Arguments of the demo's training."""


FULL = Sizes(2_000, 13_999, 100_000, (500_000, 1_000_000), (128, 512, 2_048, 4_096), {})
SMALL = Sizes(200, 600, 1_200, (2_400,), (128,), {"max_epochs": 1, "limit_train_batches": 4})


class Row(NamedTuple):
    """Something to measure."""

    what: str
    tool: str
    how: str
    """Which of several times counts."""
    measure: Callable[[], dict]


# ----------------------------------------------------------------------------- training

EPOCH = f"median of {N_MEASURED} epochs, from end to end, after {N_WARM}"


@contextmanager
def arithmetic(precision: str) -> Iterator[dict]:
    """Give the arguments of ``train`` for ``"fp32"``, ``"tf32"`` or ``"bf16"``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield {"precision": "bf16-mixed"} if precision == "bf16" else {}
    finally:
        torch.set_float32_matmul_precision(before)


def train(sizes: Sizes, n_cells: int, batch_size: int, precision: str = "fp32", **kwargs) -> dict:
    """Train through the public API."""
    model, timer = model_of(cells(n_cells, sizes.n_genes)), EpochClock()
    with arithmetic(precision) as in_precision:
        timer.start = clock()
        model.train(
            max_epochs=N_WARM + N_MEASURED,
            batch_size=batch_size,
            callbacks=[timer],
            **(QUIET | in_precision | kwargs),
        )
    end_if_interrupted(model)
    return timer.result(-(-n_cells // batch_size))


def loop(sizes: Sizes, n_cells: int, batch_size: int) -> dict:
    """Train in a bare loop."""
    seconds = bare_loop(cells(n_cells, sizes.n_genes), batch_size, N_WARM + N_MEASURED)
    return of_epoch(float(np.median(seconds[N_WARM:])), -(-n_cells // batch_size))


def train_scvi(sizes: Sizes, n_cells: int, batch_size: int) -> dict:
    """Train scvi-tools' SCVI, which has no MMD and no second network for the effect."""
    adata, timer = cells(n_cells, sizes.n_genes), EpochClock()
    scvi.model.SCVI.setup_anndata(adata, batch_key="condition", labels_key="label")
    model = scvi.model.SCVI(adata, n_hidden=256, n_latent=10, gene_likelihood="nb")
    timer.start = clock()
    epochs = {"max_epochs": N_WARM + N_MEASURED, "batch_size": batch_size}
    model.train(**epochs, callbacks=[timer], **QUIET)
    return timer.result(-(-n_cells // batch_size))


class ProfiledEpoch(EpochClock):
    """Profiles the last epoch, and times those before."""

    def __init__(self) -> None:
        super().__init__()
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def on_train_epoch_start(self, trainer, plan) -> None:
        """Start before the last epoch."""
        if trainer.current_epoch == N_WARM + N_MEASURED:
            clock()
            self.profiler.start()

    def on_train_epoch_end(self, trainer, plan) -> None:
        """Stop after it."""
        clock()
        if trainer.current_epoch == N_WARM + N_MEASURED:
            self.profiler.stop()
        else:
            super().on_train_epoch_end(trainer, plan)


def busy(sizes: Sizes, batch_size: int = 128) -> dict:
    """Measure how long the device computes, and how long copies take it, in an epoch."""
    needs_cuda()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
        torch.zeros(1, device=DEVICE)  # What it loads is there before the training.
    model, timer = model_of(cells(sizes.kang, sizes.n_genes)), ProfiledEpoch()
    epochs = {"max_epochs": N_WARM + N_MEASURED + 1, "batch_size": batch_size}
    model.train(**epochs, callbacks=[timer], **QUIET)
    end_if_interrupted(model)
    n_steps = -(-sizes.kang // batch_size)
    wall = timer.result(n_steps)["ms per step"]
    kinds, n_kernels = {"kernels": 0.0, "copies": 0.0}, 0
    for event in timer.profiler.key_averages():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        kind = "copies" if event.key.startswith(("Memcpy", "Memset")) else "kernels"
        kinds[kind] += event.self_device_time_total / 1000 / n_steps
        n_kernels += event.count if kind == "kernels" else 0
    return {
        "share busy": kinds["kernels"] / wall,
        "ms of kernels per step": kinds["kernels"],
        "ms of copies per step": kinds["copies"],
        "kernels per step": n_kernels / n_steps,
        "ms per step, not profiled": wall,
    }


# ---------------------------------------------------------------------------------- MMD


def needs_cuda() -> None:
    """Fail where there is no GPU of NVIDIA's."""
    if DEVICE != "cuda":
        raise RuntimeError("needs CUDA")


def mmd_step(kind: str, n: int) -> Callable[[], torch.Tensor]:
    """Return a function that computes the MMD of ``n`` cells and its gradient."""
    y = torch.randn(n, 128).to(DEVICE).requires_grad_()
    condition = (torch.arange(n) % 2).to(DEVICE)
    mmd = functools.partial(plain_mmd, bandwidths=BANDWIDTHS)
    if kind == "ours":
        mmd = multi_scale_mmd
    return lambda: torch.autograd.grad(mmd(y, condition), y)[0]


def eager_mmd(kind: str, n: int) -> dict:
    """Call it from Python."""
    return {"ms": 1000 * float(np.median(seconds_of(mmd_step(kind, n), 20, n_warm=5)))}


def captured_mmd(kind: str, n: int) -> dict:
    """Replay it as a CUDA graph, which takes no time of Python's."""
    needs_cuda()
    step, stream, graph = mmd_step(kind, n), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    clock()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    clock()
    difference = (captured - step()).abs().max().item()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(50):
        graph.replay()
    end.record()
    clock()
    return {"ms": start.elapsed_time(end) / 50, "largest difference of gradients": difference}


# ------------------------------------------------------------ transfer, latent, the demo

ONCE = "once, after 1,000 of the cells"
DEFAULT = f"{scvi.settings.batch_size}, the default"


def transfer(sizes: Sizes, batch_size: int | None) -> dict:
    """Transfer cells in memory."""
    model = briefly_trained(sizes.many, sizes.n_genes)
    model.transfer(target_condition="treated", indices=np.arange(1_000))
    action = functools.partial(model.transfer, target_condition="treated", batch_size=batch_size)
    (seconds,) = seconds_of(action, n_times=1)
    return {"s": seconds, "cells per s": sizes.many / seconds}


def represent(sizes: Sizes, n_cells: int, batch_size: int | None) -> dict:
    """Encode cells in memory."""
    model = briefly_trained(n_cells, sizes.n_genes)
    model.get_latent_representation(indices=np.arange(1_000))
    action = functools.partial(model.get_latent_representation, batch_size=batch_size)
    (seconds,) = seconds_of(action, n_times=1)
    return {"s": seconds, "cells per s": n_cells / seconds}


class TimedMethod(trvae.TRVAEMethod):
    """The default model, with the seconds that its training took."""

    def fit(self, adata, *, seed, **keys) -> None:
        """Train."""
        start = clock()
        super().fit(adata, seed=seed, **keys)
        self.seconds = clock() - start


def demo(sizes: Sizes, precision: str) -> dict:
    """Predict what ``trvae demo`` predicts, with its seed."""
    split = stimulated_nk_cells()
    with arithmetic(precision) as kwargs:
        kwargs |= {"accelerator": ACCELERATOR, "enable_progress_bar": False}
        method = TimedMethod(train_kwargs=sizes.demo | kwargs)
        _, metrics = predict_held_out(split, method, "stimulated", seed=0)
    names = {"R2 of means": "r2_mean", "R2 of variances": "r2_variance"}
    accuracy = {name: float(metrics.loc["prediction", key]) for name, key in names.items()}
    return {"s": method.seconds, "epochs": len(method.model.history["train_loss"])} | accuracy


# ---------------------------------------------------------------------------- all rows


def rows(sizes: Sizes) -> Iterator[Row]:
    """Yield what to measure, the most important first."""
    tools = {
        "trVAE": train,
        "bare loop, dense cells on the device": loop,
        "SCVI (n_hidden=256, nb, otherwise defaults)": train_scvi,
    }
    epochs = [(sizes.kang, 128), *((sizes.many, size) for size in (128, 512, 4_096))]
    for n_cells, batch_size in epochs:
        what = f"epoch, {n_cells:,} cells, batch {batch_size}"
        for tool, measure in tools.items():
            yield Row(what, tool, EPOCH, functools.partial(measure, sizes, n_cells, batch_size))
        if HAS_DATA_ON_DEVICE and (n_cells, batch_size) != (sizes.many, 512):
            streamed = functools.partial(train, data_on_device=False)
            measure = functools.partial(streamed, sizes, n_cells, batch_size)
            yield Row(what, "trVAE, data_on_device=False", EPOCH, measure)
    what = f"device during an epoch, {sizes.kang:,} cells, batch 128"
    yield Row(what, "trVAE", "one profiled epoch", functools.partial(busy, sizes))
    for n in sizes.mmd:
        for tool, kind in (("trVAE", "ours"), ("19 full matrices", "plain")):
            measure = functools.partial(eager_mmd, kind, n)
            yield Row(f"MMD, {n:,} x 128, with gradient", tool, "median of 20 after 5", measure)
    for precision in ("fp32", "tf32", "bf16"):
        measure = functools.partial(demo, sizes, precision)
        yield Row("training of the demo", f"trVAE, {precision}", "once", measure)
    for n_cells, batch_size in ((sizes.kang, 128), (sizes.many, 4_096)):
        for precision in ("tf32", "bf16"):
            measure = functools.partial(train, sizes, n_cells, batch_size, precision)
            what = f"epoch, {n_cells:,} cells, batch {batch_size}"
            yield Row(what, f"trVAE, {precision}", EPOCH, measure)
    for size in (None, 4_096):
        what = f"transfer, {sizes.many:,} cells, batch {size or DEFAULT}"
        yield Row(what, "trVAE", ONCE, functools.partial(transfer, sizes, size))
    yield from latent_rows(sizes, sizes.many)
    # A capture that fails can spoil what follows in the process, and ours may fail.
    for tool, kind in (("19 full matrices", "plain"), ("trVAE", "ours")):
        for n in sizes.mmd:
            measure = functools.partial(captured_mmd, kind, n)
            what = f"MMD, {n:,} x 128, with gradient"
            yield Row(what, f"{tool}, CUDA graph", "mean of 50 replays, by events", measure)
    for n_cells in sizes.latent:
        yield from latent_rows(sizes, n_cells)


def latent_rows(sizes: Sizes, n_cells: int) -> Iterator[Row]:
    """Yield both batch sizes; of the most cells, one is enough."""
    for size in (None, 4_096) if n_cells < 1_000_000 else (4_096,):
        what = f"latent representation, {n_cells:,} cells, batch {size or DEFAULT}"
        yield Row(what, "trVAE", ONCE, functools.partial(represent, sizes, n_cells, size))


def measured(row: Row) -> dict:
    """Measure a row; an error is its result."""
    start, values, error = time.perf_counter(), {}, ""
    try:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(SEED)
        values = row.measure()
    except Exception as raised:  # noqa: BLE001
        error = f"{type(raised).__name__}: {raised}"
    took = time.perf_counter() - start
    return {
        "what": row.what, "tool": row.tool, "how": row.how, "values": values, "error": error,
        "took": took,
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "results" / "gpu" / f"{date.today()}.json"
    parser.add_argument("--out", type=Path, default=default, help="JSON file, which is replaced")
    parser.add_argument("--small", action="store_true", help="a proof that the rows run")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these")
    parser.add_argument("--seconds", type=float, default=480, help="after which no row starts")
    arguments = parser.parse_args()
    quiet()
    start, record = (
        time.perf_counter(),
        environment_with_gpu(SEED) | {"small": arguments.small, "rows": []},
    )
    print(json.dumps(record, indent=1), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for row in rows(SMALL if arguments.small else FULL):
        if not any(words in f"{row.what} | {row.tool}" for words in arguments.only):
            continue
        if time.perf_counter() - start > arguments.seconds:
            print(f"{arguments.seconds:g} s are over: stopped before {row.what} | {row.tool}")
            break
        record["rows"].append(measured(row))
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(markdown(record) + "\n")
        print(json.dumps(record["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
