"""Quantiles of counts against SciPy's, over all the parameters that cells can have."""

import numpy as np
import pytest
import torch
from scipy import stats

from trvae.counterfactual._quantiles import binomial_quantile, count_quantile

N = 20_000
RNG = np.random.default_rng(0)
ANY = (RNG.integers(0, 2**31, N // 2) + 0.5) / 2**31
EXTREME = 10 ** RNG.uniform(-9.6, -0.1, N // 4)
TAIL = np.concatenate([ANY, EXTREME, 1 - EXTREME])


def log_uniform(low, high):
    return 10 ** RNG.uniform(low, high, N)


def assert_quantile(value, law):
    """It is the smallest count that is exceeded with a probability of at most ``TAIL``."""
    value = value.numpy()
    assert ((value >= 0) & (value % 1 == 0)).all()
    assert (law.sf(value) <= TAIL * (1 + 1e-9)).all()
    assert (law.sf(value - 1) >= TAIL * (1 - 1e-9)).all()
    assert (value == law.isf(TAIL).clip(0)).mean() > 0.9999


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array, float)) for array in arrays]


@pytest.mark.parametrize("high", [0.5, 2.5, 5.0])
def test_of_poisson_and_negative_binomial(high):
    mean, theta = log_uniform(-8, high), log_uniform(-3, 6)
    assert_quantile(count_quantile(*tensors(TAIL, mean), None), stats.poisson(mean))
    law = stats.nbinom(theta, theta / (theta + mean))
    assert_quantile(count_quantile(*tensors(TAIL, mean, theta)), law)


@pytest.mark.parametrize("high", [0.5, 4.5])
def test_of_binomial(high):
    n_trials = np.ceil(log_uniform(0, high))
    rare = log_uniform(-7, 0)
    for share in (rare, 1 - rare, np.zeros(N), np.full(N, 0.5)):
        law = stats.binom(n_trials, share)
        assert_quantile(binomial_quantile(*tensors(TAIL, n_trials, share)), law)


def test_of_nothing():
    none = torch.zeros(0, dtype=torch.float64)
    assert len(count_quantile(none, none, none)) == 0
    assert len(binomial_quantile(none, none, none)) == 0
