"""The asymmetric and the focal loss: gold values, their definitions, torchvision, and hard logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from voxray.losses.asl import asl
from voxray.losses.bce import bce
from voxray.losses.focal import focal

GOLD_LOGITS, GOLD_TARGETS = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
LOSSES = {
    "bce": bce,
    "asl": asl,
    "asl_grad": lambda x, y: asl(x, y, focal_gradient=True),
    "asl_powers_under_1": lambda x, y: asl(x, y, 0.5, 0.3, 0.05, focal_gradient=True),
    "asl_powers_under_1_no_clip": lambda x, y: asl(x, y, 0.5, 0.3, 0.0, focal_gradient=True),
    "asl_no_clip": lambda x, y: asl(x, y, 2.0, 2.0, 0.0, focal_gradient=True),
    "focal": focal,
    "focal_power_under_1": lambda x, y: focal(x, y, 0.25, 0.5),
}


def defined_asl(logits, targets, gamma_neg, gamma_pos, clip, focal_gradient):
    """The definition, word for word, in whatever precision the logits have."""
    present = torch.sigmoid(logits)
    absent = (1 - present + clip).clamp(max=1)
    loss = targets * present.clamp(min=1e-8).log() + (1 - targets) * absent.clamp(min=1e-8).log()
    weight = (1 - (present * targets + absent * (1 - targets))) ** (
        gamma_pos * targets + gamma_neg * (1 - targets)
    )
    return -loss * (weight if focal_gradient else weight.detach())


def rows(seed: int, scale: float = 3.0, num: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 2, (num, 5), generator=generator).double()


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), logits)[0]


def test_gold_values_of_the_asymmetric_loss() -> None:
    """DOMAINS.md section 7."""
    elements = asl(GOLD_LOGITS, GOLD_TARGETS)
    torch.testing.assert_close(elements, torch.tensor([[0.015130, 0.000568, 0.091253]]), atol=1e-6, rtol=0)
    assert elements.sum().item() == pytest.approx(0.106951, abs=1e-6)
    assert elements.mean().item() == pytest.approx(0.035650, abs=1e-6)
    assert asl(GOLD_LOGITS, GOLD_TARGETS, clip=0).mean().item() == pytest.approx(0.054333, abs=1e-6)
    assert asl(GOLD_LOGITS, GOLD_TARGETS, 0, 0, 0).mean().item() == pytest.approx(0.471422, abs=1e-6)


@pytest.mark.parametrize("focal_gradient", [False, True])
@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos", "clip"), [(4, 1, 0.05), (4, 0, 0.05), (2, 2, 0), (1, 3, 0.2)]
)
def test_the_asymmetric_loss_and_its_gradient_are_the_definitions(
    gamma_neg, gamma_pos, clip, focal_gradient
) -> None:
    logits, targets = rows(0)
    ours = asl(logits, targets, gamma_neg, gamma_pos, clip, focal_gradient)
    theirs = defined_asl(logits, targets, gamma_neg, gamma_pos, clip, focal_gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits), rtol=1e-6, atol=1e-12)


def test_without_focusing_and_shift_it_is_bce_with_its_gradient() -> None:
    logits, targets = rows(1)
    ours, theirs = asl(logits, targets, 0, 0, 0), bce(logits, targets)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


def test_a_large_logit_costs_what_bce_says_up_to_eps() -> None:
    """1 − sigmoid(17) is 0 in float32, where the definition would already say 18.4."""
    logits = torch.tensor([17.0, 30.0])
    losses = asl(logits, torch.zeros(2), 0, 0, 0)
    torch.testing.assert_close(losses, torch.tensor([17.0, -math.log(1e-8)]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("alpha", "gamma"), [(1, 2), (1, 0.5), (3, 0), (0.25, 4)])
def test_the_focal_loss_is_torchvisions_without_its_alpha(alpha, gamma) -> None:
    logits, targets = rows(2)
    ours = focal(logits, targets, alpha, gamma)
    theirs = alpha * sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hard_logits_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    """Right or wrong by far, under autocast, and the saturated ones where a weight is exactly 0."""
    values = torch.tensor([-1e4, -1e2, -20.0, -3.0, 0.0, 3.0, 20.0, 1e2, 1e4]).to(dtype).requires_grad_()
    for target in (0.0, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSSES[name](values, torch.full((9,), target))
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert (loss >= 0).all()
        assert gradient(loss, values).isfinite().all()


@pytest.mark.parametrize("name", ["asl", "focal"])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    logits, targets = rows(3)
    half = logits.detach().bfloat16()
    torch.testing.assert_close(LOSSES[name](half, targets.bfloat16()), LOSSES[name](half.float(), targets))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 39), name=st.sampled_from(sorted(LOSSES)))
def test_any_split_of_the_rows_gives_the_same_sum_and_gradient(seed: int, cut: int, name: str) -> None:
    logits, targets = rows(seed)
    whole = LOSSES[name](logits, targets)
    parts = [LOSSES[name](logits[part], targets[part]) for part in (slice(0, cut), slice(cut, None))]
    torch.testing.assert_close(sum(part.sum() for part in parts), whole.sum())
    torch.testing.assert_close(gradient(torch.cat(parts), logits), gradient(whole, logits))
