"""Clipping against torch's own `clip_grad_norm_`, which multiplies by 1 what is short enough."""

import math

import pytest
import torch
from torch import nn

from voxray.train.gradient import clipped_norm


def parameters(scale: float) -> list[nn.Parameter]:
    """Two parameters with gradients and one without; the norm of all is 13 × `scale`."""
    made = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(3))]
    made[0].grad = scale * torch.tensor([3.0, 4.0])
    made[1].grad = scale * torch.tensor([[0.0, 12.0]])
    return made


@pytest.mark.parametrize("scale", [0.01, 1 / 13, 0.1, 1.0, 1e30, math.inf, math.nan])
def test_it_clips_as_torch_does(scale):
    ours, torchs = parameters(scale), parameters(scale)
    norm = clipped_norm(ours, 1.0)
    expected = nn.utils.clip_grad_norm_(torchs, 1.0)
    assert torch.equal(norm, expected) or (norm.isnan() and expected.isnan())
    for own, other in zip(ours[:2], torchs[:2], strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=0, equal_nan=True)
    assert ours[2].grad is None


def test_the_norm_before_clipping_is_told():
    made = parameters(1.0)
    assert float(clipped_norm(made, 6.5)) == pytest.approx(13.0)
    after = torch.cat([parameter.grad.flatten() for parameter in made[:2]])
    assert float(after.norm()) == pytest.approx(6.5, rel=1e-6)
    assert float(clipped_norm(parameters(2.0), None)) == pytest.approx(26.0)


def test_gradients_that_are_short_enough_are_not_written():
    made = parameters(0.01)
    before = [parameter.grad._version for parameter in made[:2]]
    clipped_norm(made, 1.0)
    assert [parameter.grad._version for parameter in made[:2]] == before
