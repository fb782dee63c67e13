"""The first layer that skips zeros equals a plain one."""

import numpy as np
import pytest
import torch
from helpers import DEVICE, cpu_only
from torch import nn

from trvae.module._sparse import InputLinear, nonzero_positions, sparse_where_faster

pytestmark = pytest.mark.usefixtures("tensors_on_device")


def mostly_zero(density, n_cells=20, n_in=300):
    g = torch.Generator(DEVICE).manual_seed(0)
    kept = torch.rand(n_cells, n_in, generator=g) < density
    x = torch.randn(n_cells, n_in, generator=g, dtype=torch.float64) * kept
    # Rows and columns without an entry, also the last.
    x[[3, 4, -1]] = 0
    x[:, [0, 7, -1]] = 0
    return x


def test_positions_are_those_of_numpy():
    x = mostly_zero(0.1)
    x[0, 5] = torch.nan
    np.testing.assert_array_equal(nonzero_positions(x).cpu(), np.flatnonzero(x.cpu()))


@cpu_only("on a GPU, a dense product is always faster")
def test_only_what_is_mostly_zero_is_sparse():
    x = mostly_zero(0.5)
    assert sparse_where_faster(x) is x
    x = mostly_zero(0.05)
    shape, positions, values = sparse_where_faster(x)
    again = torch.zeros(shape, dtype=x.dtype)
    again.view(-1)[positions] = values
    torch.testing.assert_close(again, x)


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("form", [sparse_where_faster, torch.clone])
def test_equals_a_linear_layer_gradients_included(density, form):
    x = mostly_zero(density)
    plain = nn.Linear(300, 6).double()
    ours = InputLinear(plain)
    weights = torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(20, 6)
    for layer, cells in ((plain, x), (ours, form(x))):
        (layer(cells) * weights).sum().backward()
    torch.testing.assert_close(ours(form(x)), plain(x))
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad.T)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


def test_takes_more_features_than_a_short_integer_counts():
    x = torch.zeros(3, 70_000)
    x[1, [2, 69_999]] = torch.tensor([1.0, 2.0])
    layer = InputLinear(nn.Linear(70_000, 2))
    layer(sparse_where_faster(x)).sum().backward()
    expected = torch.zeros(70_000)
    expected[[2, 69_999]] = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(layer.weight.grad, expected[:, None].expand(-1, 2))


def test_gradient_is_numerically_right():
    x = sparse_where_faster(mostly_zero(0.05, n_cells=6, n_in=30))
    layer = InputLinear(nn.Linear(30, 3).double())

    def product(weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    leaves = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(product, leaves)
