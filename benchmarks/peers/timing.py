"""What the speed scripts share: the task that ``benchmarks/speed.py`` gives, and the result."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def read_task() -> dict:
    """Read the task from the command line and set threads and seed."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    return task


def time_mmd(mmd: Callable, shapes: list) -> dict[str, float]:
    """Milliseconds of forward and backward, the best of ten, of ``mmd(y, condition, n)``."""
    result = {}
    for batch_size, n_conditions in shapes:
        y = torch.randn(batch_size, 128, requires_grad=True)
        condition = torch.arange(batch_size) % n_conditions
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            mmd(y, condition, n_conditions).backward()
            seconds.append(time.perf_counter() - start)
        result[f"{batch_size} x {n_conditions}"] = 1000 * min(seconds)
    return result


class EpochTimer:
    """Seconds of epochs without their validation."""

    def __init__(self):
        self._starts, self._ends = [time.perf_counter()], []

    def around(self, validation: Callable) -> Callable:
        """Wrap what comes between epochs."""

        def timed(*args, **kwargs):
            self._ends.append(time.perf_counter())
            result = validation(*args, **kwargs)
            self._starts.append(time.perf_counter())
            return result

        return timed

    def best(self) -> float:
        """The fastest, as the machine's other work makes some slower."""
        return float(np.subtract(self._ends, self._starts[:-1]).min())


def write_result(result: dict) -> None:
    """Print the result, with the peak memory (Linux: ``getrusage`` has the parent's in it)."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps(result | {"peak_memory_gib": int(peak) / 1024**2}))
