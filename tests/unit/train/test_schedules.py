"""Rates against gold values of upstream's schedules, torch's schedulers and the closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from voxray.train.config import ParameterOptions, TrainingConfig
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.optimisation.schedules import Place, momentum, rate, set_rates


def at_step(step: int, num_steps: int) -> Place:
    return Place(step, num_steps, epoch=0, num_epochs=1)


def at_epoch(epoch: int, num_epochs: int) -> Place:
    return Place(step=epoch * 10, num_steps=num_epochs * 10, epoch=epoch, num_epochs=num_epochs)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (500, 0.0025), (1000, 0.005), (60500, 0.00255), (119999, 0.0001), (130000, 0.0001)],
)
def test_cosine_has_the_rates_of_the_brain_to_text_baseline(step, expected):
    training = TrainingConfig(learning_rate=0.005, warmup_steps=1000, min_lr_fraction=0.02)
    assert rate(training, 0.005, at_step(step, 120_000)) == pytest.approx(expected, rel=1e-8, abs=1e-15)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, 4e-5), (0.125, 5.2e-4), (0.25, 1e-3), (0.5, 7.50003e-4), (0.75, 2.50007e-4), (1, 1e-8)],
)
def test_one_cycle_has_the_rates_of_fastai(share, expected):
    training = TrainingConfig(schedule="one_cycle")
    assert rate(training, 1e-3, at_step(int(share * 800), 800)) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 0.95), (0.125, 0.9), (0.25, 0.85), (0.625, 0.9), (1, 0.95)]
)
def test_one_cycle_has_the_momenta_of_fastai(share, expected):
    training = TrainingConfig(schedule="one_cycle")
    assert momentum(training, at_step(int(share * 800), 800)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("cycle_momentum", [False, True])
def test_one_cycle_equals_torchs_on_the_same_peak(cycle_momentum):
    """torch ends its phases at `pct · total − 1` and `total − 1`, fastai at `pct · total` and `total`."""
    num_steps, pct_start, div, div_final = 60, 0.3, 20.0, 1e4
    training = TrainingConfig(
        schedule="one_cycle",
        learning_rate=0.2,
        pct_start=pct_start,
        div=div,
        div_final=div_final,
        cycle_momentum=cycle_momentum,
    )
    ours = build_optimizer(nn.Linear(2, 2, bias=False), training)
    reference = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        reference,
        max_lr=0.2,
        total_steps=num_steps + 1,
        pct_start=(pct_start * num_steps + 1) / (num_steps + 1),
        div_factor=div,
        final_div_factor=div_final / div,
        cycle_momentum=cycle_momentum,
    )
    for step in range(num_steps):
        assert set_rates(ours, training, at_step(step, num_steps)) == pytest.approx(
            reference.param_groups[0]["lr"], rel=1e-9
        )
        assert ours.param_groups[0]["betas"] == pytest.approx(reference.param_groups[0]["betas"], rel=1e-9)
        reference.step()
        scheduler.step()


def test_one_cycle_cycles_the_momentum_of_sgd_too():
    training = TrainingConfig(schedule="one_cycle", optimizer="sgd")
    optimizer = build_optimizer(nn.Linear(2, 2), training)
    set_rates(optimizer, training, at_step(100, 800))
    assert [group["momentum"] for group in optimizer.param_groups] == pytest.approx([0.9, 0.9])


def test_cosine_epochs_equals_torchs_cosine_annealing_stepped_per_epoch():
    num_epochs = 12
    training = TrainingConfig(
        schedule="cosine_epochs", learning_rate=3e-4, min_lr_fraction=0.01, warmup_fraction=0.0
    )
    reference = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=num_epochs, eta_min=3e-6)
    for epoch in range(num_epochs + 1):
        assert rate(training, 3e-4, at_epoch(epoch, num_epochs)) == pytest.approx(
            reference.param_groups[0]["lr"], rel=1e-9
        )
        reference.step()
        scheduler.step()
    assert rate(training, 3e-4, at_epoch(2 * num_epochs, num_epochs)) == pytest.approx(3e-6)


def test_warm_up_is_a_straight_line_from_zero_under_every_schedule_but_one_cycle():
    for schedule in ("constant", "cosine", "cosine_epochs"):
        training = TrainingConfig(schedule=schedule, warmup_fraction=0.1)
        rates = [rate(training, 2.0, Place(step, 100, 0, 5)) for step in range(11)]
        assert rates == pytest.approx([0.2 * step for step in range(11)])


def test_cosine_reaches_its_floor_at_the_last_planned_update_and_stays():
    training = TrainingConfig(warmup_fraction=0.1, min_lr_fraction=0.05)
    third = rate(training, 2.0, at_step(40, 100))
    assert third == pytest.approx(2.0 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 3))))
    assert {rate(training, 2.0, at_step(step, 100)) for step in (100, 101, 10_000)} == {0.1}


def test_constant_keeps_the_rate():
    training = TrainingConfig(schedule="constant", warmup_fraction=0.0)
    assert {rate(training, 0.3, at_step(step, 10)) for step in range(20)} == {0.3}


def test_a_groups_own_warm_up_and_floor_stand_in_for_the_stages():
    training = TrainingConfig(
        learning_rate=1.0,
        warmup_steps=10,
        min_lr_fraction=0.5,
        weight_decay=0.0,
        parameters={"0": ParameterOptions(learning_rate=4.0, warmup_steps=0, min_lr_fraction=0.0)},
    )
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), training)
    first = set_rates(optimizer, training, at_step(0, 100))
    assert first == 4.0
    assert [group["lr"] for group in optimizer.param_groups] == [4.0, 0.0]
    set_rates(optimizer, training, at_step(100, 100))
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5]


@given(
    schedule=st.sampled_from(["constant", "cosine", "cosine_epochs", "one_cycle"]),
    warmup_steps=st.integers(0, 50),
    step=st.integers(0, 100),
    num_steps=st.integers(0, 50),
    epoch=st.integers(0, 10),
    num_epochs=st.integers(1, 5),
)
def test_no_place_leaves_the_range_from_zero_to_the_full_rate(
    schedule, warmup_steps, step, num_steps, epoch, num_epochs
):
    training = TrainingConfig(schedule=schedule, warmup_steps=warmup_steps)
    assert 0.0 <= rate(training, 0.5, Place(step, num_steps, epoch, num_epochs)) <= 0.5 * (1 + 1e-12)
