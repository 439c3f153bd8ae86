"""Optimisers and learning-rate schedules. A schedule is a pure function of the step, so it has no state to
save.
"""

import math

import torch
from torch import nn

from voxray.train.config import TrainingConfig


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return the stage's optimiser over the trainable parameters; biases and norms get no weight decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=training.learning_rate)
        case "adam":
            return torch.optim.Adam(groups, lr=training.learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9)


def learning_rate(step: int, num_steps: int, training: TrainingConfig) -> float:
    """Return the rate of update `step` (from 0) of `num_steps`: linear warm-up, then constant or a cosine to
    a floor.

    The warm-up ends at the full rate; the cosine reaches `min_lr_fraction` of it at the last update.
    """
    warmup = math.ceil(training.warmup_fraction * num_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / (warmup + 1)
    if training.schedule == "constant":
        return training.learning_rate
    progress = min(1.0, (step - warmup) / max(1, num_steps - 1 - warmup))
    floor = training.min_lr_fraction
    return training.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
