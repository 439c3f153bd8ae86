"""Learning-rate schedules: pure functions of the place in a stage, so there is no state to save.

A rate is `base × shape(place)`. Update 0 of a linear warm-up has rate 0, as upstream's schedules define it.
"""

import math
from typing import Any

import torch

from voxray.core.place import Place
from voxray.train.config import TrainingConfig

# fastai's `moms` (fastai/learner.py): momentum at the start, at the highest rate, at the end of one_cycle.
CYCLED_MOMENTUM = (0.95, 0.85, 0.95)


def set_rates(optimizer: torch.optim.Optimizer, training: TrainingConfig, place: Place) -> float:
    """Set every group's rate, and its momentum where one_cycle cycles it; return the first group's rate.

    The groups are those of `build_optimizer`: each keeps its `base_lr`, `warmup_steps`, `min_lr_fraction`.
    """
    cycled = momentum(training, place)
    for group in optimizer.param_groups:
        group["lr"] = rate(
            training,
            group["base_lr"],
            place,
            warmup_steps=group["warmup_steps"],
            min_lr_fraction=group["min_lr_fraction"],
        )
        if cycled is not None:
            _set_momentum(group, cycled)
    return optimizer.param_groups[0]["lr"]


def rate(
    training: TrainingConfig,
    base_lr: float,
    place: Place,
    *,
    warmup_steps: int | None = None,
    min_lr_fraction: float | None = None,
) -> float:
    """Return the rate of the update at `place`, for parameters whose full rate is `base_lr`.

    `warmup_steps` and `min_lr_fraction` stand in for the stage's own. After the last planned update (or
    epoch) the rate stays where it ended. one_cycle rises and ends by itself: it has no warm-up and no floor.
    """
    if training.schedule == "one_cycle":
        cycle = (1 / training.div, 1.0, 1 / training.div_final)
        return base_lr * _combined_cosine(
            _share_done(place.step, place.num_steps), training.pct_start, *cycle
        )
    warmup = num_warmup_steps(training, place.num_steps) if warmup_steps is None else warmup_steps
    floor = training.min_lr_fraction if min_lr_fraction is None else min_lr_fraction
    risen = place.step / warmup if place.step < warmup else 1.0
    match training.schedule:
        case "constant":
            shape = 1.0
        case "cosine":
            done = _share_done(max(0, place.step - warmup), max(0, place.num_steps - warmup))
            shape = 1.0 if place.step < warmup else _cosine(1.0, floor, done)
        case "cosine_epochs":
            shape = _cosine(1.0, floor, _share_done(place.epoch, place.num_epochs))
    return base_lr * risen * shape


def momentum(training: TrainingConfig, place: Place) -> float | None:
    """Return the momentum (beta1 of Adam) that one_cycle asks for at `place`; None where it is left alone."""
    if training.schedule != "one_cycle" or not training.cycle_momentum:
        return None
    return _combined_cosine(_share_done(place.step, place.num_steps), training.pct_start, *CYCLED_MOMENTUM)


def num_warmup_steps(training: TrainingConfig, num_steps: int) -> int:
    """Return the updates of the linear rise: `warmup_steps`, else the nearest number to its share of all."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return round(training.warmup_fraction * num_steps)


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "betas" in group:
        group["betas"] = (value, group["betas"][1])
    else:
        group["momentum"] = value


def _share_done(done: int, total: int) -> float:
    return min(1.0, done / total) if total > 0 else 1.0


def _cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _combined_cosine(share: float, peak_at: float, start: float, peak: float, end: float) -> float:
    """Two half cosines, start → peak → end (fastai's `combined_cos`)."""
    if share < peak_at:
        return _cosine(start, peak, share / peak_at)
    return _cosine(peak, end, (share - peak_at) / (1 - peak_at))
