"""`TrainState`: everything that the next update depends on. No generator's state is in it: randomness is
keyed.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from voxray.train.config import TrainingConfig


@dataclass
class TrainState:
    """Model, optimiser and the place in the run. `epoch` counts finished epochs of the current stage."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    stage: int = 0
    epoch: int = 0
    stage_step: int = 0  # updates of this stage
    step: int = 0  # updates of the run
    best: float = math.nan
    best_step: int = 0
    epochs_without_better: int = 0
    stage_ended: bool = False  # by early stopping

    PLAIN = (
        "stage",
        "epoch",
        "stage_step",
        "step",
        "best",
        "best_step",
        "epochs_without_better",
        "stage_ended",
    )

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved beside the model: tensors and plain values only, so that it loads
        `weights_only`.
        """
        assert self.optimizer is not None
        return {
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in self.PLAIN},
        }

    def load(
        self, model: dict[str, torch.Tensor], state: dict[str, Any], optimizer: torch.optim.Optimizer
    ) -> None:
        """Become the saved state; `optimizer` is built for the saved stage."""
        self.model.load_state_dict(model)
        optimizer.load_state_dict(state["optimizer"])
        self.optimizer = optimizer
        for name in self.PLAIN:
            setattr(self, name, state[name])

    def next_stage(self) -> None:
        """Go on to the next stage: the weights stay, the optimiser and the counters begin again."""
        self.stage, self.epoch, self.stage_step = self.stage + 1, 0, 0
        self.optimizer, self.epochs_without_better, self.stage_ended = None, 0, False

    def note_monitor(self, value: float, training: TrainingConfig) -> bool:
        """Take the epoch's monitored value; return whether it is the best of the run so far. NaN never is."""
        sign = 1 if training.monitor_mode == "max" else -1
        better = not math.isnan(value) and (math.isnan(self.best) or sign * value > sign * self.best)
        if better:
            self.best, self.best_step, self.epochs_without_better = value, self.step, 0
        else:
            self.epochs_without_better += 1
        return better
