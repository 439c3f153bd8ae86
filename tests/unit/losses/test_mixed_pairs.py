"""BiMixCo and SoftCLIP: worked values, and what they are where they are something known."""

import pytest
import torch
from torch.nn import functional as F

from voxray.losses.contrastive import info_nce
from voxray.losses.mixed_pairs import bi_mixco, soft_clip

PRED = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
TARGET = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
NONE = torch.ones(3)


def test_bi_mixco_has_the_worked_value():
    loss = bi_mixco(PRED, TARGET, torch.tensor([1, 2, 0]), torch.tensor([0.9, 1.0, 0.7]), 0.5)
    assert loss.item() == pytest.approx(0.980507, abs=1e-5)


def test_soft_clip_has_the_worked_value():
    assert soft_clip(PRED, TARGET, 0.5).item() == pytest.approx(1.103677, abs=1e-5)


def test_a_row_that_is_its_own_partner_is_not_lost():
    """Upstream writes 1 - share over the diagonal and so drops the row; it is as if it were not mixed."""
    mixed = bi_mixco(PRED, TARGET, torch.tensor([1, 1, 0]), torch.tensor([0.9, 0.4, 0.7]), 0.5)
    whole = bi_mixco(PRED, TARGET, torch.tensor([1, 2, 0]), torch.tensor([0.9, 1.0, 0.7]), 0.5)
    assert mixed.item() == pytest.approx(whole.item(), abs=1e-6)


@pytest.mark.parametrize("tau", [0.5, 0.05])
def test_bi_mixco_without_mixing_is_info_nce(tau):
    loss = bi_mixco(PRED, TARGET, torch.tensor([1, 2, 0]), NONE, tau)
    torch.testing.assert_close(loss, info_nce(PRED, TARGET, tau))


def test_info_nce_is_float32_under_autocast_too():
    torch.manual_seed(0)
    rows_ND = torch.randn(64, 32)
    near_ND = rows_ND + 0.1 * torch.randn(64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(near_ND, rows_ND, 0.006)
    assert loss.item() == info_nce(near_ND, rows_ND, 0.006).item()


def test_soft_clip_of_the_targets_themselves_is_their_entropy_and_least():
    soft = F.softmax(TARGET @ TARGET.T / 0.5, -1)
    entropy = -(soft * soft.log()).sum(-1).mean()
    assert soft_clip(TARGET, TARGET, 0.5).item() == pytest.approx(entropy.item(), abs=1e-5)
    assert soft_clip(PRED, TARGET, 0.5) > entropy


def test_logits_are_float32_for_half_precision_rows_and_under_autocast():
    """At a temperature of 0.006 logits of bf16 would be off by a half."""
    rows = F.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=-1).bfloat16()
    own = torch.arange(8).roll(1), torch.full((8,), 0.7)
    wide = soft_clip(rows.float(), rows.float(), 0.006), bi_mixco(rows.float(), rows.float(), *own, 0.006)
    with torch.autocast("cpu", torch.bfloat16):
        half = soft_clip(rows, rows, 0.006), bi_mixco(rows, rows, *own, 0.006)
    torch.testing.assert_close(half, wide)
