"""The cells and models that ``benchmarks/gpu.py`` measures."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scipy import sparse

import trvae

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEED = 0
N_LABELS, CONDITIONS, BLOCK = 5, ("control", "treated"), 20_000
# Of epochs, the first ones draw memory, choose kernels and capture what is replayed later.
N_WARM = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACCELERATOR = "gpu" if DEVICE == "cuda" else "cpu"
QUIET = {
    "accelerator": ACCELERATOR, "enable_progress_bar": False, "train_size": 1.0,
}  # fmt: skip


def clock() -> float:
    """Seconds, read when the device has done all that it was asked for."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@functools.lru_cache(maxsize=2)
def cells(n_cells: int, n_genes: int) -> ad.AnnData:
    """Counts of which about 10 % are not zero; above 20,000, the same cells come again."""
    rng = np.random.default_rng(SEED)
    n_distinct = min(n_cells, BLOCK)
    label = rng.integers(0, N_LABELS, n_distinct)
    condition = rng.integers(0, len(CONDITIONS), n_distinct)
    rates = 0.105 * rng.gamma(3.0, 1 / 3, (N_LABELS, n_genes))
    effect = np.where(rng.random(n_genes) < 0.1, 3.0, 1.0)
    rows = [
        sparse.csr_matrix(rng.poisson(rates[a] * effect**b), dtype=np.float32)
        for a, b in zip(label, condition, strict=True)
    ]
    n_blocks = -(-n_cells // n_distinct)
    matrix = sparse.vstack([sparse.vstack(rows, format="csr")] * n_blocks, format="csr")[:n_cells]
    obs = {
        "condition": np.tile(np.array(CONDITIONS)[condition], n_blocks)[:n_cells],
        "label": np.tile(np.char.add("type_", label.astype(str)), n_blocks)[:n_cells],
    }
    return ad.AnnData(matrix, obs=obs)


def model_of(adata: ad.AnnData) -> trvae.TRVAE:
    """Return the default network for some cells, not trained."""
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="label")
    return trvae.TRVAE(adata, seed=SEED)


@functools.lru_cache(maxsize=1)
def briefly_trained(n_cells: int, n_genes: int) -> trvae.TRVAE:
    """Return a model that has seen a few minibatches, for transfers."""
    model = model_of(cells(n_cells, n_genes))
    model.train(max_epochs=1, limit_train_batches=20, **QUIET)
    return model


class EpochClock(Callback):
    """Notes when epochs end."""

    def __init__(self) -> None:
        self.start, self.ends = clock(), list[float]()

    def on_train_epoch_end(self, trainer, plan) -> None:
        """Note the time."""
        self.ends.append(clock())

    def result(self, n_steps: int) -> dict:
        """Return the median epoch, from end to end, and what the first one took beyond it."""
        if len(self.ends) <= N_WARM:
            raise RuntimeError("training was stopped")
        seconds = float(np.median(np.diff(self.ends)[N_WARM - 1 :]))
        first = self.ends[0] - self.start
        return of_epoch(seconds, n_steps) | {"start-up, s": first - seconds}


def of_epoch(seconds: float, n_steps: int) -> dict:
    """Return the numbers that every row about epochs has."""
    memory = {}
    if DEVICE == "cuda":
        memory["peak device memory, GiB"] = torch.cuda.max_memory_allocated() / 1024**3
    return {"s per epoch": seconds, "ms per step": 1000 * seconds / n_steps} | memory


def bare_loop(adata: ad.AnnData, batch_size: int, n_epochs: int) -> list[float]:
    """Seconds of epochs of a plain loop: the same network, loss and optimiser, cells on the device."""
    module = model_of(adata).module.to(DEVICE).train()
    tensors = {
        "X": torch.as_tensor(adata.X.toarray(), device=DEVICE),
        "batch": torch.as_tensor(adata.obs["_scvi_batch"].to_numpy(), device=DEVICE),
        "labels": torch.as_tensor(adata.obs["_scvi_labels"].to_numpy(), device=DEVICE),
    }
    for name in ("batch", "labels"):
        tensors[name] = tensors[name].long()[:, None]
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    seconds = []
    for _ in range(n_epochs):
        start = clock()
        for rows in torch.randperm(adata.n_obs, device=DEVICE).split(batch_size):
            optimizer.zero_grad()
            _, _, output = module({name: values[rows] for name, values in tensors.items()})
            output.loss.backward()
            optimizer.step()
        seconds.append(clock() - start)
    return seconds


def plain_mmd(
    y: torch.Tensor, condition: torch.Tensor, bandwidths: Sequence[float]
) -> torch.Tensor:
    """Return the MMD of two conditions from full matrices, one per bandwidth, as written in papers."""
    norm = y.square().sum(1)
    distance = (norm[:, None] + norm - 2 * y @ y.T).clamp(min=0)
    # Rounding errors would exceed the smallest bandwidths.
    distance = distance * (1 - torch.eye(len(y), device=y.device))
    kernel = sum(torch.exp(-distance / (2 * s)) for s in bandwidths) / len(bandwidths)
    first = (condition == 0).to(y.dtype)
    sign = first / first.sum() - (1 - first) / (1 - first).sum()
    return sign @ kernel @ sign


def seconds_of(action: Callable[[], object], n_times: int, n_warm: int = 0) -> list[float]:
    """Seconds of each of some calls, after some that don't count."""
    seconds = []
    for _ in range(n_warm + n_times):
        start = clock()
        action()
        seconds.append(clock() - start)
    return seconds[n_warm:]
