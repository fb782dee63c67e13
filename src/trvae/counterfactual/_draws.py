"""Random numbers with one stream per cell, whatever the batch size or the order of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


# Separates the streams of random numbers that one cell draws from.
_DRAW_EXPRESSION, _DRAW_LATENT = 0, 1


def cell_keys(names: pd.Index) -> np.ndarray:
    """A stable number for each cell, from its name and how often the name came before."""
    names = names.astype(str)
    name_hash = pd.util.hash_array(names.to_numpy(dtype=object))
    occurrence = pd.Series(name_hash).groupby(name_hash).cumcount().to_numpy()
    return np.stack([name_hash, occurrence.astype(np.uint64)], axis=1)


def _generators(keys: np.ndarray, seed: int, purpose: int, draw: int = 0):
    """One counter-based stream a cell, so that no cell's draws depend on another's.

    It is one generator, set to the start of the next cell's stream, as making one takes longer.
    """
    bits = np.random.Philox(0)
    generator, state = np.random.Generator(bits), bits.state
    for name_hash, occurrence in keys:
        state["state"] = {
            "key": np.array([seed, name_hash], dtype=np.uint64),
            "counter": np.array([0, draw, purpose, occurrence], dtype=np.uint64),
        }
        bits.state = state
        yield generator


def uniform_draws(keys: np.ndarray, seed: int, n: int) -> np.ndarray:
    """Uniform variates, ``n_cells x n``."""
    uniform = np.empty((len(keys), n))
    for generator, row in zip(_generators(keys, seed, _DRAW_EXPRESSION), uniform, strict=True):
        generator.random(out=row)
    return uniform


def normal_draws(keys: np.ndarray, seed: int, draw: int, n: int) -> np.ndarray:
    """Standard normal variates, ``n_cells x n``."""
    return np.stack([g.standard_normal(n) for g in _generators(keys, seed, _DRAW_LATENT, draw)])
