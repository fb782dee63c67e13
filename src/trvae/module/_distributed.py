"""Exchange of cells between the processes of distributed data-parallel training."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed


class Processes(NamedTuple):
    """Rank of this process, and number of processes that train together."""

    rank: int
    number: int


ALONE = Processes(0, 1)


def processes() -> Processes:
    """The processes of the current training; ``ALONE`` if it is not distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Processes(distributed.get_rank(), distributed.get_world_size())


def uses_processes(strategy: Any) -> bool:
    """Whether training with this strategy of Lightning's is distributed."""
    return "ddp" in strategy if isinstance(strategy, str) else isinstance(strategy, DDPStrategy)


def gather_cells(cells: torch.Tensor) -> torch.Tensor:
    """Concatenate the cells of all processes, by rank. Every process must call this.

    Parameters
    ----------
    cells
        ``n_cells x ...``; ``n_cells`` may differ between processes.

    Returns
    -------
    ``n_all_cells x ...``. Each process's cells receive the gradients of all processes.
    """
    return _GatherCells.apply(cells) if processes().number > 1 else cells


class _GatherCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells):
        rank, number = processes()
        own = torch.tensor([len(cells)], device=cells.device)
        counts = [torch.empty_like(own) for _ in range(number)]
        distributed.all_gather(counts, own)
        sizes = [int(count) for count in counts]
        # Gathered tensors must have the same size.
        padded = cells.new_zeros(max(sizes), *cells.shape[1:])
        padded[: len(cells)] = cells
        gathered = [torch.empty_like(padded) for _ in range(number)]
        distributed.all_gather(gathered, padded)
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        return grad[ctx.own]
