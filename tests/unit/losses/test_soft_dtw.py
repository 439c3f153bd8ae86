"""Soft-DTW against its definition: the soft minimum over every monotone alignment, written out."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from voxray.losses.soft_dtw import soft_dtw


def paths(n: int, m: int) -> Iterator[list[tuple[int, int]]]:
    """Every path from (0, 0) to (n − 1, m − 1) by steps down, right and both."""
    if (n, m) == (1, 1):
        yield [(0, 0)]
        return
    for a, b in ((n - 1, m), (n, m - 1), (n - 1, m - 1)):
        if a and b:
            for path in paths(a, b):
                yield [*path, (n - 1, m - 1)]


@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_it_is_the_soft_minimum_over_all_paths(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)
    num_n, num_m = torch.tensor([4, 2, 1]), torch.tensor([5, 3, 1])
    found = soft_dtw(costs, num_n, num_m, gamma)
    for cost, n, m, value in zip(costs, num_n.tolist(), num_m.tolist(), found.tolist(), strict=True):
        sums = [sum(float(cost[place]) for place in path) for path in paths(n, m)]
        expected = -gamma * math.log(sum(math.exp(-each / gamma) for each in sums))
        assert value == pytest.approx(expected, abs=1e-9)


def test_a_hard_minimum_is_dtw() -> None:
    """The best path through [[0, 1], [1, 0], [2, 1]] costs 0 + 0 + 1."""
    cost = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]]], dtype=torch.float64)
    value = soft_dtw(cost, torch.tensor([3]), torch.tensor([2]), 1e-3)
    assert value.item() == pytest.approx(1.0, abs=1e-6)


def test_its_gradient_is_that_of_finite_differences_and_none_reaches_padding() -> None:
    cost = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    num = torch.tensor([3, 2]), torch.tensor([4, 2])
    assert torch.autograd.gradcheck(lambda c: soft_dtw(c, *num, 0.5), cost)
    soft_dtw(cost, *num, 0.5).sum().backward()
    assert cost.grad is not None
    assert not cost.grad[1, 2:].any()
    assert not cost.grad[1, :, 2:].any()
    np.testing.assert_array_less(-1e-12, cost.grad.numpy())  # an expected alignment
