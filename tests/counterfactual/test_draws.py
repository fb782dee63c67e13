import numpy as np
import pandas as pd
import torch
from scipy import stats

from trvae.counterfactual._draws import (
    cell_keys,
    is_below,
    normal_draws,
    random_tails,
    tail_probability,
)

NAMES = pd.Index([f"cell_{i}" for i in range(500)])


def uniform_draws(*arguments):
    return tail_probability(random_tails(*arguments)).numpy()


def test_a_cells_draws_depend_on_its_name_and_the_seed_only():
    keys = cell_keys(NAMES)
    for draw in (lambda *to: random_tails(*to, 5), lambda *to: normal_draws(*to, 2, 5)):
        values = draw(keys, 0).numpy()
        np.testing.assert_array_equal(draw(keys[::-1], 0).numpy()[::-1], values)
        np.testing.assert_array_equal(draw(cell_keys(NAMES[:7]), 0), values[:7])
        assert not (draw(keys, 1).numpy() == values).any()
        assert len(np.unique(values)) == values.size
    # Genes that are added don't matter to the others.
    np.testing.assert_array_equal(random_tails(keys, 0, 9)[:, :5], random_tails(keys, 0, 5))


def test_streams_of_repeated_names_and_of_repeated_draws_differ():
    twice = cell_keys(pd.Index(["a", "b", "a"]))
    assert len(np.unique(random_tails(twice, 0, 4))) == 12
    assert not (normal_draws(twice, 0, 0, 4) == normal_draws(twice, 0, 1, 4)).any()


def test_distributions():
    keys = cell_keys(NAMES)
    assert stats.kstest(uniform_draws(keys, 0, 2000).ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(normal_draws(keys, 0, 0, 20).numpy().ravel(), "norm").pvalue > 0.01
    # Each cell and each gene by itself, too.
    draws = uniform_draws(keys, 0, 500)
    for rows in (draws, draws.T):
        pvalues = stats.kstest(rows, "uniform", axis=1).pvalue
        assert stats.kstest(pvalues, "uniform").pvalue > 0.01


def test_streams_are_independent():
    n = 500
    draws = uniform_draws(cell_keys(NAMES), 0, n)
    others = uniform_draws(cell_keys(NAMES), 1, n)
    latent = stats.norm.cdf(normal_draws(cell_keys(NAMES), 0, 0, n))
    pairs = {
        "neighbouring genes": (draws[:, 1:], draws[:, :-1]),
        "neighbouring cells": (draws[1:], draws[:-1]),
        "seeds": (draws, others),
        "purposes": (draws, latent),
    }
    for name, (one, other) in pairs.items():
        counts = np.histogram2d(one.ravel(), other.ravel(), bins=16, range=[(0, 1)] * 2)[0]
        assert stats.chisquare(counts.ravel()).pvalue > 0.01, name
    # No two genes, and no two cells, whichever they are: the largest of all correlations.
    for rows in (draws, draws.T):
        correlation = np.corrcoef(rows) - np.eye(n)
        assert np.abs(correlation).max() < 6 / np.sqrt(n)
        np.testing.assert_allclose(correlation.std(), 1 / np.sqrt(n), rtol=0.02)
    # Every bit of one is independent of every bit of its neighbour.
    bits = random_tails(cell_keys(NAMES), 0, n).numpy()[..., None] >> np.arange(31) & 1
    of_pairs = np.concatenate([bits[:, :-1], bits[:, 1:]], axis=2).reshape(-1, 62)
    correlation = np.corrcoef(of_pairs.T) - np.eye(62)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(of_pairs))


def test_small_and_large_probabilities_are_resolved():
    ends = torch.tensor([0, 1, 2**31 - 2, 2**31 - 1], dtype=torch.int32)
    np.testing.assert_allclose(tail_probability(ends)[:2], [2.0**-32, 3 * 2.0**-32], rtol=1e-14)
    np.testing.assert_allclose(1 - tail_probability(ends)[2:], [3 * 2.0**-32, 2.0**-32])
    # In float32, too, none is 0 or 1.
    single = tail_probability(ends, torch.float32)
    assert ((single > 0) & (single < 1)).all()
    # Candidates include all that are below.
    tails = random_tails(cell_keys(NAMES), 0, 50)
    for probability in (1e-3, 0.5, 1.0):
        below = is_below(tails, torch.full(tails.shape, probability)).bool()
        assert (below | (tail_probability(tails) >= probability)).all()
        np.testing.assert_allclose(below.double().mean(), probability, rtol=0.3)


def test_a_seed_gives_the_same_numbers_in_every_version():
    key = cell_keys(pd.Index(["a"]))
    np.testing.assert_array_equal(random_tails(key, 7, 2), [[1133942201, 591777468]])
    np.testing.assert_allclose(normal_draws(key, 7, 1, 2), [[0.51138942, -0.78987805]], atol=1e-8)


def test_the_hash_is_the_published_one():
    """Its two parts, in Python's integers of any size."""

    def split_mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    keys = cell_keys(NAMES[:3])
    for cell, row in zip(keys, random_tails(keys, 2**32 - 1, 4).tolist(), strict=True):
        stream = 0
        for word in (2**32 - 1, 0, 0, *map(int, cell)):
            stream = split_mix(stream ^ word)
        for gene, value in enumerate(row):
            h = (stream ^ split_mix(gene)) % 2**32
            h = h * 0x85EBCA6B % 2**32
            h ^= h >> 13
            h = (h ^ stream >> 32) * 0xC2B2AE35 % 2**32
            assert value == (h ^ h >> 16) % 2**31
