import itertools

import numpy as np
import pytest
import torch

from trvae.module._mmd import BANDWIDTHS, multi_scale_mmd


def reference_mmd(y, condition, label=None, bandwidths=BANDWIDTHS):
    """The definition, as plain loops over labels, conditions, bandwidths and cells."""

    def mean_kernel(a, b):
        total = 0.0
        for s in bandwidths:
            for u in a:
                for v in b:
                    total = total + torch.exp(-((u - v) ** 2).sum() / (2 * s))
        return total / (len(bandwidths) * len(a) * len(b))

    labels = [None] if label is None else label.unique().tolist()
    sums, sizes = [], []
    for one in labels:
        inside = torch.ones_like(condition, dtype=bool) if one is None else label == one
        groups = [y[inside & (condition == c)] for c in condition.unique()]
        groups = [g for g in groups if len(g) >= 2]
        if len(groups) < 2:
            continue
        sums.append(
            sum(
                mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
                for a, b in itertools.combinations(groups, 2)
            )
        )
        sizes.append(sum(len(g) for g in groups))
    if not sums:
        return torch.zeros((), dtype=y.dtype)
    return sum(s * n for s, n in zip(sums, sizes, strict=True)) / sum(sizes)


def sample(n=24, d=3, n_conditions=3, n_labels=2, spread=1.0, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    y = spread * torch.randn(n, d, generator=g, dtype=torch.float64)
    condition = torch.randint(0, n_conditions, (n,), generator=g)
    label = torch.randint(0, n_labels, (n,), generator=g)
    return y.to(dtype), condition, label


@pytest.mark.parametrize(
    ("spread", "offset"), [(1e-3, 0.0), (1.0, 0.0), (30.0, 0.0), (1e-3, 1.0), (1e-2, 10.0)]
)
@pytest.mark.parametrize("within_labels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_definition(spread, offset, within_labels, dtype):
    y, condition, label = sample(spread=spread)
    y = y + offset
    label = label if within_labels else None
    exact = y.clone().requires_grad_()
    expected = reference_mmd(exact, condition, label)
    expected_grad = torch.autograd.grad(expected, exact)[0]

    fast = y.to(dtype).requires_grad_()
    # The definition is evaluated on the very numbers that float32 can hold.
    if dtype == torch.float32:
        exact = fast.detach().double().requires_grad_()
        expected = reference_mmd(exact, condition, label)
        expected_grad = torch.autograd.grad(expected, exact)[0]
    value = multi_scale_mmd(fast, condition, label)
    grad = torch.autograd.grad(value, fast)[0]

    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    error = (grad.double() - expected_grad).norm() / expected_grad.norm()
    assert error < 1e-5


def test_gradient_of_samples_that_are_equal_but_for_one_cell():
    y, _, _ = sample(n=12)
    y = torch.cat([y, y])
    y[0, 0] += 0.1
    condition = torch.arange(2).repeat_interleave(12)
    fast = y.float().requires_grad_()
    exact = fast.detach().double().requires_grad_()
    grad = torch.autograd.grad(multi_scale_mmd(fast, condition), fast)[0]
    expected = torch.autograd.grad(reference_mmd(exact, condition), exact)[0]
    assert (grad.double() - expected).norm() / expected.norm() < 1e-5


def test_gradient_is_numerically_right():
    y, condition, label = sample(n=8)
    bandwidths = (0.5, 1.0, 10.0)
    assert torch.autograd.gradcheck(
        lambda v: multi_scale_mmd(v, condition, label, bandwidths), y.requires_grad_()
    )


def test_is_zero_for_a_sample_against_itself():
    y, _, _ = sample(n=10, dtype=torch.float32)
    both = torch.cat([y, y])
    condition = torch.arange(20) // 10
    assert multi_scale_mmd(both, condition).abs() < 1e-6


def test_is_positive_for_samples_that_differ():
    y, _, _ = sample(n=40)
    condition = torch.arange(40) % 2
    near = multi_scale_mmd(y, condition)
    far = multi_scale_mmd(y + 5.0 * condition[:, None], condition)
    assert 0 < near < far


def test_does_not_depend_on_the_order_of_cells_or_the_names_of_conditions():
    y, condition, label = sample()
    value = multi_scale_mmd(y, condition, label)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(multi_scale_mmd(y[order], condition[order], label[order]), value)
    renamed = torch.tensor([7, 2, 4])[condition]
    torch.testing.assert_close(multi_scale_mmd(y, renamed, 3 + label), value)


def test_grows_with_every_pair_of_conditions_and_not_only_neighbours():
    # Conditions 0 and 2 differ, 1 equals both halves: the pair (0, 2) has to count.
    y, _, _ = sample(n=10)
    three = torch.cat([y, y, y + 3.0])
    condition = torch.arange(30) // 10
    pair = multi_scale_mmd(torch.cat([y, y + 3.0]), torch.arange(20) // 10)
    torch.testing.assert_close(multi_scale_mmd(three, condition), 2 * pair)


@pytest.mark.parametrize("lonely", [0, 1])
def test_leaves_out_conditions_with_fewer_than_two_cells(lonely):
    y, _, _ = sample(n=21)
    condition = torch.arange(20) % 2
    expected = multi_scale_mmd(y[:20], condition)
    with_lonely = torch.cat([condition, torch.full((lonely,), 5)])
    value = multi_scale_mmd(y[: 20 + lonely], with_lonely)
    torch.testing.assert_close(value, expected)


def test_is_zero_and_differentiable_if_nothing_can_be_compared():
    y = torch.randn(3, 2, requires_grad=True)
    value = multi_scale_mmd(y, torch.tensor([0, 1, 2]))
    value.backward()
    assert value == 0
    assert torch.equal(y.grad, torch.zeros_like(y))


def test_labels_that_lie_apart_matter_only_without_matching_within_them():
    # Same cells within each label, but conditions have them in different proportions.
    y, _, _ = sample(n=12)
    apart = torch.cat([y, y, y + 9.0, y + 9.0, y + 9.0])
    condition = torch.tensor([0, 1, 0, 0, 1]).repeat_interleave(12)
    label = torch.tensor([0, 0, 1, 1, 1]).repeat_interleave(12)
    assert multi_scale_mmd(apart, condition, label).abs() < 1e-12
    assert multi_scale_mmd(apart, condition) > 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_extreme_activations(scale, dtype):
    y, condition, label = sample(dtype=dtype)
    y = (scale * y).requires_grad_()
    value = multi_scale_mmd(y, condition, label)
    (grad,) = torch.autograd.grad(value, y)
    exact = y.detach().double().requires_grad_()
    expected = reference_mmd(exact, condition, label)
    (expected_grad,) = torch.autograd.grad(expected, exact)
    # Kernels of about 1 are subtracted from each other.
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    assert grad.dtype == dtype
    assert torch.isfinite(grad).all()
    error = (grad.double() - expected_grad).norm()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    # Where kernels vanish, so does the gradient.
    assert error <= tolerance * expected_grad.norm() + 1e-15 / scale


def test_gradient_is_numerically_right_at_all_bandwidths():
    y, condition, label = sample(n=8)
    assert torch.autograd.gradcheck(
        lambda v: multi_scale_mmd(v, condition, label), y.requires_grad_()
    )


def test_stays_float32_under_mixed_precision():
    y, condition, _ = sample(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = multi_scale_mmd(y, condition)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, multi_scale_mmd(y, condition), rtol=1e-6, atol=0)


def test_bandwidths_are_those_of_the_paper():
    assert len(BANDWIDTHS) == 19
    np.testing.assert_allclose(np.log10(BANDWIDTHS[:6]), np.arange(-6, 0))
    assert BANDWIDTHS[6:15] == (1, 5, 10, 15, 20, 25, 30, 35, 100)
    np.testing.assert_allclose(np.log10(BANDWIDTHS[15:]), np.arange(3, 7))
