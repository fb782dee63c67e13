"""Random numbers of each cell and gene, whatever the minibatch size or the order of the cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

# Separate the streams that one cell draws from.
_EXPRESSION, _LATENT = 0, 1

# Odd numbers as signed integers, by which murmur3's finalizer multiplies.
_MULTIPLIERS = tuple(int(np.uint32(m).view(np.int32)) for m in (0x85EBCA6B, 0xC2B2AE35))

_UNIT = 2.0**-31


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
    # Names are mostly unique, so it doesn't help to hash equal ones once.
    name_hash = pd.util.hash_array(names.to_numpy(dtype=object), categorize=False)
    occurrence = pd.Series(name_hash).groupby(name_hash).cumcount().to_numpy()
    return np.stack([name_hash, occurrence.astype(np.uint64)], axis=1)


def random_tails(
    keys: np.ndarray, seed: int, n: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Random integers for the draws of expression, see :func:`tail_probability`.

    Parameters
    ----------
    keys
        Keys of the cells from :func:`cell_keys`, ``n_cells x 2``.
    seed
        Seed of all streams.
    n
        Number of integers per cell.
    device
        Where to compute them; it makes no difference to the values.

    Returns
    -------
    32-bit integers, uniform from 0 to ``2**31 - 1``, ``n_cells x n``. A row depends on the cell's
    key and the seed only.
    """
    return _random_integers(_streams(keys, seed, _EXPRESSION), n, device)


def tail_probability(tails: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Probability of a larger value than the one to be drawn, between 0 and 1.

    It is that of an integer from :func:`random_tails`. Floating-point numbers resolve small
    probabilities, so that rare events are drawn as often as they should.
    """
    # In float32, those next to 1 would be rounded to it.
    return ((tails.to(dtype) + 0.5) * _UNIT).clamp(max=1 - torch.finfo(dtype).eps / 2)


def is_below(tails: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """Whether the :func:`tail_probability` can be below another one, as floating-point numbers."""
    # In place, for a tensor of booleans takes several times as long on CPUs.
    return tails.to(probability.dtype).lt_(probability / _UNIT)


def normal_draws(keys: np.ndarray, seed: int, draw: int, n: int) -> torch.Tensor:
    """Standard normal variates for the draws of ``z``.

    Parameters
    ----------
    keys, seed
        See :func:`random_tails`: cells and seed.
    draw
        Number of the draw, from 0.
    n
        Number of variates per cell.

    Returns
    -------
    ``n_cells x n`` on the CPU. A row depends on the cell's key, the seed and the draw only.
    """
    tails = _random_integers(_streams(keys, seed, _LATENT, draw), n, "cpu")
    return -torch.special.ndtri(tail_probability(tails))


def _streams(keys: np.ndarray, seed: int, purpose: int, draw: int = 0) -> np.ndarray:
    """64 random bits for each cell as two signed integers, ``n_cells x 2``."""
    bits = np.zeros(len(keys), np.uint64)
    for word in (seed, purpose, draw, *keys.T):
        bits = _split_mix(bits ^ np.asarray(word, np.uint64))
    return bits.view(np.int32).reshape(-1, 2)


def _split_mix(bits: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea & Flood, *OOPSLA* 2014, figure 16)."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _random_integers(streams: np.ndarray, n: int, device: torch.device | str) -> torch.Tensor:
    """Hash of the two words of each cell with the number of each column.

    This is the finalizer of Appleby's murmur3 (``fmix32``, public domain). Each of its rounds takes
    in one word of the cell; its first shift is left out, for the words are random already.
    """
    columns = _split_mix(np.arange(n, dtype=np.uint64)).astype(np.uint32).view(np.int32)
    first, second = torch.from_numpy(streams).to(device).split(1, dim=1)
    bits = first ^ torch.from_numpy(columns).to(device)
    bits.mul_(_MULTIPLIERS[0])
    bits ^= (bits >> 13).bitwise_and_(2**19 - 1)
    bits ^= second
    bits.mul_(_MULTIPLIERS[1])
    bits ^= (bits >> 16).bitwise_and_(2**16 - 1)
    return bits.bitwise_and_(2**31 - 1)
