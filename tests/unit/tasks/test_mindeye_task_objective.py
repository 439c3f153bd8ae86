"""MindEye's schedules and its mixing: worked values, and what each row depends on."""

from typing import Any

import pytest
import torch
from scipy.stats import beta, kstest

from voxray.core.place import Place
from voxray.losses.mixed_pairs import bi_mixco
from voxray.tasks.mindeye import objective
from voxray.tasks.mindeye.config import MindEyeObjectiveConfig


def own(**values: Any) -> MindEyeObjectiveConfig:
    return MindEyeObjectiveConfig.model_validate(values)


def at(epoch: int, num_epochs: int) -> Place:
    return Place(10 * epoch, 10 * num_epochs, epoch, num_epochs)


def test_softclips_temperature_has_the_worked_values():
    found = [objective.soft_tau(own(mixco_fraction=0.0), at(epoch, 5)) for epoch in range(5)]
    assert found == pytest.approx([0.004, 0.004513, 0.00575, 0.006987, 0.0075], abs=1e-6)


def test_mixing_ends_at_a_third_and_the_temperature_begins_there():
    """int(.33 · 240) = 79 epochs, as upstream."""
    values = own()
    assert [epoch for epoch in range(240) if objective.is_mixed(values, at(epoch, 240))] == list(range(79))
    assert objective.tau(values, at(78, 240)) == 0.006
    assert objective.tau(values, at(79, 240)) == pytest.approx(0.004)
    assert objective.tau(values, at(239, 240)) == pytest.approx(0.0075)


def test_alpha_goes_linearly_from_end_to_end():
    values = own(alpha=0.01, alpha_end=0.05)
    found = [objective.alpha(values, at(epoch, 60)) for epoch in range(60)]
    torch.testing.assert_close(torch.tensor(found), torch.linspace(0.01, 0.05, 60))
    assert objective.alpha(own(alpha=0.3), at(17, 60)) == 0.3


def test_the_upstream_weighting_is_a_value():
    values = own(alpha=0.01, alpha_end=0.05, nce_weight="1 - alpha")
    assert objective.nce_weight(values, at(59, 60)) == pytest.approx(0.95)
    assert objective.nce_weight(own(), at(59, 60)) == 1


def test_shares_are_betas_for_half_of_the_rows():
    share_B = objective.drawn_shares(own(), 3, torch.arange(20_000))
    mixed_B = share_B[share_B < 1]
    assert len(mixed_B) == pytest.approx(0.5 * (1 - beta.sf(1 - 1e-8, 0.15, 0.15)) * 20_000, rel=0.1)
    assert kstest(mixed_B[mixed_B < 0.99].double(), _conditional).pvalue > 0.01


def _conditional(x: Any) -> Any:
    """Beta(.15, .15) below 0.99: beyond it float32 shares are 1."""
    return beta.cdf(x, 0.15, 0.15) / beta.cdf(0.99, 0.15, 0.15)


def rows(num: int) -> tuple[torch.Tensor, ...]:
    """Return voxels, shares, valid and positions in an order that is not theirs."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(num, generator=generator)
    voxels = torch.randn(num, 5, generator=generator)
    return voxels, torch.linspace(0.1, 0.9, num), torch.ones(num, dtype=torch.bool), 100 + order


def test_each_row_has_another_row_as_its_partner_and_its_blend():
    voxels, share, valid, position = rows(8)
    seen = objective.mixed(voxels, share, valid, position, 5)
    assert sorted(seen.partner_B.tolist()) == sorted(position.tolist())
    assert (seen.partner_B != position).all()
    for i in range(8):
        (other,) = (position == seen.partner_B[i]).nonzero()[0].tolist()
        torch.testing.assert_close(seen.voxels_BV[i], share[i] * voxels[i] + (1 - share[i]) * voxels[other])


def test_partners_do_not_depend_on_the_rows_order_but_on_the_key():
    voxels, share, valid, position = rows(8)
    seen = objective.mixed(voxels, share, valid, position, 5)
    turned = objective.mixed(voxels.flip(0), share.flip(0), valid, position.flip(0), 5)
    torch.testing.assert_close(turned.voxels_BV.flip(0), seen.voxels_BV)
    other = objective.mixed(voxels, share, valid, position, 6)
    assert (other.partner_B != seen.partner_B).any()


def test_padding_is_nobodys_partner_and_a_row_alone_stays_as_it_is():
    voxels, share, valid, position = rows(8)
    valid[2] = False
    seen = objective.mixed(voxels, share, valid, position, 5)
    assert position[2] not in seen.partner_B[valid]
    alone = objective.mixed(voxels[:1], share[:1], torch.tensor([True]), position[:1], 5)
    torch.testing.assert_close(alone.voxels_BV, voxels[:1])
    assert alone.share_B.tolist() == [1.0]


def test_the_mixed_term_finds_each_partner_among_the_updates_rows():
    """Against BiMixCo with the partners' places written out."""
    generator = torch.Generator().manual_seed(1)
    pred, true = torch.randn(2, 4, 6, generator=generator)
    position, partner = torch.tensor([7, 3, 9, 1]), torch.tensor([9, 1, 3, 7])
    share = torch.tensor([0.9, 0.2, 0.6, 1.0])
    found = objective.mixed_contrast(own(tau=0.5), pred, true, position, partner, share)
    torch.testing.assert_close(found, bi_mixco(pred, true, torch.tensor([2, 3, 1, 0]), share, 0.5))
