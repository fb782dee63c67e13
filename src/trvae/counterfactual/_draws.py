"""Random numbers with one stream per cell, whatever the minibatch size or the order of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator


# Separate the streams that one cell draws from.
_DRAW_EXPRESSION, _DRAW_LATENT = 0, 1


def cell_keys(names: pd.Index) -> np.ndarray:
    """Keys that identify cells by name, for the draws of the other functions.

    Parameters
    ----------
    names
        Names of the cells, ``n_cells``. They need not be unique.

    Returns
    -------
    Unsigned integers, ``n_cells x 2``: a hash of the name, and how often the name occurred before.
    """
    names = names.astype(str)
    name_hash = pd.util.hash_array(names.to_numpy(dtype=object))
    occurrence = pd.Series(name_hash).groupby(name_hash).cumcount().to_numpy()
    return np.stack([name_hash, occurrence.astype(np.uint64)], axis=1)


def uniform_draws(keys: np.ndarray, seed: int, n: int) -> np.ndarray:
    """Uniform variates for the draws of expression.

    Parameters
    ----------
    keys
        Keys of the cells from :func:`cell_keys`, ``n_cells x 2``.
    seed
        Seed of all streams.
    n
        Number of variates per cell.

    Returns
    -------
    ``n_cells x n``, in ``[0, 1)``. A row depends on the cell's key and the seed only.
    """
    uniform = np.empty((len(keys), n))
    for generator, row in zip(_generators(keys, seed, _DRAW_EXPRESSION), uniform, strict=True):
        generator.random(out=row)
    return uniform


def normal_draws(keys: np.ndarray, seed: int, draw: int, n: int) -> np.ndarray:
    """Standard normal variates for the draws of ``z``.

    Parameters
    ----------
    keys
        Keys of the cells from :func:`cell_keys`, ``n_cells x 2``.
    seed
        Seed of all streams.
    draw
        Number of the draw, from 0.
    n
        Number of variates per cell.

    Returns
    -------
    ``n_cells x n``. A row depends on the cell's key, the seed and the draw only.
    """
    return np.stack([g.standard_normal(n) for g in _generators(keys, seed, _DRAW_LATENT, draw)])


def _generators(
    keys: np.ndarray, seed: int, purpose: int, draw: int = 0
) -> Iterator[np.random.Generator]:
    """For each cell, a generator at the start of the cell's own stream.

    Philox is counter-based: key and counter fix the stream. A single generator is moved from
    stream to stream, which is faster than making one per cell.
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
