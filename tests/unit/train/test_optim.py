"""Learning rate in closed form, and what weight decay applies to."""

import itertools
import math

import pytest
import torch
from torch import nn

from voxray.train.config import TrainingConfig
from voxray.train.optim import build_optimizer, learning_rate


def test_warm_up_then_cosine_to_the_floor():
    training = TrainingConfig(learning_rate=2.0, warmup_fraction=0.1, min_lr_fraction=0.05)
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[0] == pytest.approx(2.0 / 11)
    assert rates[9] == pytest.approx(2.0 * 10 / 11)
    assert rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.1)
    middle = 10 + 89 / 3
    assert learning_rate(int(middle), 100, training) == pytest.approx(
        2.0 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (int(middle) - 10) / 89)))
    )
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_constant_schedule_keeps_the_rate():
    training = TrainingConfig(learning_rate=0.3, schedule="constant", warmup_fraction=0.0)
    assert {learning_rate(step, 10, training) for step in range(10)} == {0.3}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_biases_and_norms_get_no_weight_decay_and_frozen_parameters_no_update(name):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model, TrainingConfig(optimizer=name, weight_decay=0.5))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(p): 0.5 if p.ndim > 1 else 0.0 for p in model.parameters() if p.requires_grad}


def test_adamw_step_equals_torch():
    torch.manual_seed(0)
    ours, reference = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    reference.load_state_dict(ours.state_dict())
    training = TrainingConfig(learning_rate=0.1, weight_decay=0.2)
    steps = [
        build_optimizer(ours, training),
        torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0.2),
    ]
    for model, optimizer in zip((ours, reference), steps, strict=True):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(ours.weight, reference.weight)
