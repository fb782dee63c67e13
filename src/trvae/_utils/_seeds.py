"""Seeding everything that draws within a context, and restoring it afterwards."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from trvae._scvi import settings_seed

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed PyTorch, NumPy, Python and scvi-tools' splits within the context.

    Parameters
    ----------
    seed
        ``None`` leaves all generators alone.
    """
    if seed is None:
        yield
        return
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(), settings_seed(seed):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def random_states() -> dict:
    """States of all generators that training draws from, as plain values and tensors."""
    name, keys, *others = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.as_tensor(np.asarray(keys, np.int64)), *others],
        "python": random.getstate(),
    }


def set_random_states(states: dict) -> None:
    """Restore what :func:`random_states` returned."""
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    name, keys, *others = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *others))
    random.setstate(states["python"])
