import numpy as np
import pytest
import torch
from torch import nn

from trvae._sparse import InputLinear, nonzero_positions


def mostly_zero(density, n_cells=20, n_in=300):
    g = torch.Generator().manual_seed(0)
    kept = torch.rand(n_cells, n_in, generator=g) < density
    x = torch.randn(n_cells, n_in, generator=g, dtype=torch.float64) * kept
    # Rows and columns without an entry, also the last.
    x[[3, 4, -1]] = 0
    x[:, [0, 7, -1]] = 0
    return x


def test_positions_are_those_of_numpy():
    x = mostly_zero(0.1)
    x[0, 5] = torch.nan
    np.testing.assert_array_equal(nonzero_positions(x), np.flatnonzero(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_equals_a_linear_layer_gradients_included(density, training):
    x = mostly_zero(density)
    plain = nn.Linear(300, 6).double()
    ours = InputLinear(plain).train(training)
    weights = torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(20, 6)
    for layer in (plain, ours):
        (layer(x) * weights).sum().backward()
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad.T)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


def test_takes_more_features_than_a_short_integer_counts():
    x = torch.zeros(3, 70_000)
    x[1, [2, 69_999]] = torch.tensor([1.0, 2.0])
    layer = InputLinear(nn.Linear(70_000, 2))
    layer(x).sum().backward()
    expected = torch.zeros(70_000)
    expected[[2, 69_999]] = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(layer.weight.grad, expected[:, None].expand(-1, 2))
