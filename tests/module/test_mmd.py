import itertools
from functools import partial

import numpy as np
import pytest
import torch
from helpers import DEVICE

from trvae.module._mmd import BANDWIDTHS, multi_scale_mmd

pytestmark = pytest.mark.usefixtures("tensors_on_device")


def definition(y, condition, label=None, bandwidths=BANDWIDTHS, reduction="mean"):
    """The MMD in double precision, by plain loops over labels, pairs of conditions and bandwidths."""

    def mean_kernel(a, b):
        distance = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-distance / (2 * s)).mean() for s in bandwidths) / len(bandwidths)

    label = torch.zeros_like(condition) if label is None else label
    total, n_compared = 0 * y.double().sum(), 0
    for one in label.unique():
        groups = [y[(label == one) & (condition == c)].double() for c in condition.unique()]
        groups = [group for group in groups if len(group) >= 2]
        if len(groups) >= 2:
            n_cells = sum(map(len, groups))
            n_compared += n_cells
            pairs = list(itertools.combinations(groups, 2))
            if reduction == "mean":
                n_cells /= len(pairs)
            for a, b in pairs:
                mmd = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
                total = total + n_cells * mmd
    return total / (len(y) if reduction == "mean" else max(n_compared, 1))


def sample(n=24, spread=1.0, offset=0.0, dtype=torch.float64):
    """Representations, conditions (three) and labels (two)."""
    g = torch.Generator(DEVICE).manual_seed(0)
    y = spread * torch.randn(n, 3, generator=g, dtype=torch.float64) + offset
    condition, label = (torch.randint(0, k, (n,), generator=g) for k in (3, 2))
    return y.to(dtype), condition, label


def both(mmd, y, *groups):
    """Value and gradient, in double precision."""
    y = y.detach().clone().requires_grad_()
    value = mmd(y, *groups)
    (grad,) = torch.autograd.grad(value, y)
    assert grad.dtype == y.dtype
    return value.double(), grad.double()


@pytest.mark.parametrize(
    ("spread", "offset"),
    [*itertools.product([1e-6, 1e-3, 1.0, 30.0, 1e3, 1e6], [0.0]), (1e-3, 1.0), (1e-2, 10.0)],
)
@pytest.mark.parametrize("within_labels", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_the_definition(spread, offset, within_labels, dtype, reduction):
    y, condition, label = sample(spread=spread, offset=offset, dtype=dtype)
    groups = (condition, label) if within_labels else (condition,)
    value, grad = both(partial(multi_scale_mmd, reduction=reduction), y, *groups)
    # The definition is evaluated on the very numbers that the precision can hold.
    expected, expected_grad = both(partial(definition, reduction=reduction), y.double(), *groups)
    is_usual = dtype != torch.bfloat16 and 1e-3 <= spread <= 30
    # Kernels of about 1 are subtracted from each other.
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0 if is_usual else 1e-6)
    tolerance = {torch.bfloat16: 1e-2}.get(dtype, 1e-5 if is_usual else 1e-4)
    # Where kernels vanish, so does the gradient.
    error = (grad - expected_grad).norm()
    assert error <= tolerance * expected_grad.norm() + 1e-15 / spread


def test_gradient_of_samples_that_are_equal_but_for_one_cell():
    y, *_ = sample(n=12)
    y = torch.cat([y, y]).float()
    y[0, 0] += 0.1
    condition = torch.arange(24) // 12
    _, grad = both(multi_scale_mmd, y, condition)
    _, expected = both(definition, y.double(), condition)
    assert (grad - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("bandwidths", [(0.5, 1.0, 10.0), BANDWIDTHS])
def test_gradient_is_numerically_right(bandwidths):
    y, *groups = sample(n=8)
    assert torch.autograd.gradcheck(
        lambda v: multi_scale_mmd(v, *groups, bandwidths), y.requires_grad_()
    )


def test_grows_from_zero_with_the_difference_between_samples():
    y, *_ = sample(n=10, dtype=torch.float32)
    condition = torch.arange(20) // 10
    same, near, far = (
        multi_scale_mmd(torch.cat([y, y + shift]), condition) for shift in (0.0, 1.0, 5.0)
    )
    assert same.abs() < 1e-6 < near < far


def test_invariant_to_the_order_of_cells_and_the_codes_of_conditions():
    y, condition, label = sample()
    value = multi_scale_mmd(y, condition, label)
    order = torch.randperm(len(y), generator=torch.Generator(DEVICE).manual_seed(1))
    torch.testing.assert_close(multi_scale_mmd(y[order], condition[order], label[order]), value)
    renamed = torch.tensor([7, 2, 4])[condition]
    torch.testing.assert_close(multi_scale_mmd(y, renamed, 3 + label), value)


def test_counts_every_pair_of_conditions_and_not_only_neighbours():
    # Conditions 0 and 1 are equal and differ from 2: both pairs with 2 count.
    y, *_ = sample(n=10)
    pair = multi_scale_mmd(torch.cat([y, y + 3.0]), torch.arange(20) // 10)
    three = multi_scale_mmd(torch.cat([y, y, y + 3.0]), torch.arange(30) // 10)
    torch.testing.assert_close(three, 2 / 3 * pair)


@pytest.mark.parametrize("m", [1, 4, 30])
def test_the_mean_over_pairs_does_not_grow_with_the_number_of_conditions(m):
    # Each of two different conditions m times: m^2 of the pairs differ.
    y, *_ = sample(n=10)
    cells = torch.cat([y, y + 3.0])
    condition = torch.arange(20) // 10
    pair = multi_scale_mmd(cells, condition)
    copies = torch.cat([condition + 2 * i for i in range(m)])
    n_pairs = m * (2 * m - 1)
    for reduction, expected in (("mean", m**2 / n_pairs * pair), ("sum", m**2 * pair)):
        value = multi_scale_mmd(cells.repeat(m, 1), copies, reduction=reduction)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(("reduction", "share"), [("mean", 20 / 21), ("sum", 1)])
def test_a_condition_with_a_single_cell_is_left_out(reduction, share):
    y, *_ = sample(n=21)
    condition = torch.cat([torch.arange(20) % 2, torch.tensor([5])])
    expected = share * multi_scale_mmd(y[:20], condition[:20])
    torch.testing.assert_close(multi_scale_mmd(y, condition, reduction=reduction), expected)


@pytest.mark.parametrize("n", [1, 3])
def test_is_zero_and_differentiable_if_nothing_can_be_compared(n):
    y = torch.randn(n, 2, requires_grad=True)
    value = multi_scale_mmd(y, torch.arange(n))
    value.backward()
    assert value == 0
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_labels_that_lie_apart_matter_only_without_matching_within_them():
    # Each label's cells are the same under both conditions, but in different proportions.
    y, *_ = sample(n=12)
    apart = torch.cat([y, y, y + 9.0, y + 9.0, y + 9.0])
    condition = torch.tensor([0, 1, 0, 0, 1]).repeat_interleave(12)
    label = torch.tensor([0, 0, 1, 1, 1]).repeat_interleave(12)
    assert multi_scale_mmd(apart, condition, label).abs() < 1e-12
    assert multi_scale_mmd(apart, condition) > 1e-3


def test_stays_float32_under_mixed_precision():
    y, condition, _ = sample(dtype=torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        mixed = multi_scale_mmd(y, condition)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, multi_scale_mmd(y, condition), rtol=1e-6, atol=0)


def test_bandwidths_are_those_of_the_paper():
    assert len(BANDWIDTHS) == 19
    np.testing.assert_allclose(np.log10(BANDWIDTHS[:6]), np.arange(-6, 0))
    assert BANDWIDTHS[6:15] == (1, 5, 10, 15, 20, 25, 30, 35, 100)
    np.testing.assert_allclose(np.log10(BANDWIDTHS[15:]), np.arange(3, 7))
