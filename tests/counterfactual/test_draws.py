import numpy as np
import pandas as pd
from scipy import stats

from trvae.counterfactual._draws import cell_keys, normal_draws, uniform_draws

NAMES = pd.Index([f"cell_{i}" for i in range(500)])


def test_a_cells_draws_depend_on_its_name_and_the_seed_only():
    keys = cell_keys(NAMES)
    for draw in (lambda *to: uniform_draws(*to, 5), lambda *to: normal_draws(*to, 2, 5)):
        values = draw(keys, 0)
        np.testing.assert_array_equal(draw(keys[::-1], 0)[::-1], values)
        np.testing.assert_array_equal(draw(cell_keys(NAMES[:7]), 0), values[:7])
        assert not (draw(keys, 1) == values).any()
        assert len(np.unique(values)) == values.size


def test_streams_of_repeated_names_and_of_repeated_draws_differ():
    twice = cell_keys(pd.Index(["a", "b", "a"]))
    assert len(np.unique(uniform_draws(twice, 0, 4))) == 12
    assert not (normal_draws(twice, 0, 0, 4) == normal_draws(twice, 0, 1, 4)).any()


def test_distributions():
    keys = cell_keys(NAMES)
    assert stats.kstest(uniform_draws(keys, 0, 20).ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(normal_draws(keys, 0, 0, 20).ravel(), "norm").pvalue > 0.01
    # Streams are independent: neither cells nor the two purposes are correlated.
    pair = np.stack([uniform_draws(keys, 0, 500)[:2], normal_draws(keys, 0, 0, 500)[:2]])
    correlation = np.corrcoef(pair.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlation).max() < 0.15


def test_a_seed_gives_the_same_numbers_in_every_version():
    key = cell_keys(pd.Index(["a"]))
    np.testing.assert_allclose(uniform_draws(key, 7, 2), [[0.50345121, 0.6980876]], atol=1e-8)
    np.testing.assert_allclose(normal_draws(key, 7, 1, 2), [[-0.5423631, 1.36935509]], atol=1e-8)
