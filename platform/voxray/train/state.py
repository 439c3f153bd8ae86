"""`TrainState`: everything that the next update depends on. No generator's state is in it: randomness is
keyed.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from voxray.train import parallel
from voxray.train.config import TrainingConfig
from voxray.train.meter import Terms, Totals
from voxray.train.optimisation.ema import Ema


@dataclass
class TrainState:
    """Model, optimiser and the place in the run. `epoch` counts finished epochs of the current stage.

    `epoch_totals` and `window_totals` are the loss terms summed since the epoch began and since the last
    record: a resumed run logs what an uninterrupted one would have.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None
    ema: Ema | None = None
    stage: int = 0
    epoch: int = 0
    epoch_batch: int = 0  # micro-batches of the epoch that were consumed
    stage_step: int = 0  # updates of this stage
    step: int = 0  # updates of the run
    epochs_done: int = 0  # of all stages
    found_rate: float = 0.0  # by the LR finder in this stage; 0: none
    best: float = math.nan
    best_step: int = 0
    evaluations_without_better: int = 0
    evaluated_step: int = -1  # the last update after which the model was evaluated
    stage_ended: bool = False  # by early stopping
    skipped: list[list[int]] = field(default_factory=list[list[int]])  # updates: stage, epoch, batch
    epoch_totals: Totals = field(default_factory=Totals)
    window_totals: Totals = field(default_factory=Totals)

    PLAIN = (
        "stage",
        "epoch",
        "epoch_batch",
        "stage_step",
        "step",
        "epochs_done",
        "found_rate",
        "best",
        "best_step",
        "evaluations_without_better",
        "evaluated_step",
        "stage_ended",
        "skipped",
    )
    TOTALS = ("epoch_totals", "window_totals")

    @property
    def is_begun(self) -> bool:
        """Whether the current stage's optimiser stands, or its only update was made (a closed form)."""
        return self.optimizer is not None or self.stage_step > 0

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the moving average of the weights where one is kept."""
        return self.ema.model if self.ema else self.model

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the state dicts of the model and, where one is kept, of its moving average, whole on every
        worker.
        """
        kept = {"model": parallel.model_state(self.model)}
        if self.ema:
            kept["ema"] = self.ema.state_dict()
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Return what is saved beside the models: tensors and plain values only, so that it loads
        `weights_only`.
        """
        return {
            "optimizer": parallel.optimizer_state(self.model, self.optimizer) if self.optimizer else {},
            "scaler": self.scaler.state_dict() if self.scaler else {},
            **{name: getattr(self, name) for name in self.PLAIN},
            **{name: getattr(self, name).state_dict() for name in self.TOTALS},
        }

    def load_place(self, state: dict[str, Any]) -> None:
        """Take over the place in the run; the model is built for it afterwards."""
        for name in self.PLAIN:
            setattr(self, name, state[name])
        for name in self.TOTALS:
            setattr(self, name, Totals(state[name]))

    def load_tensors(self, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
        """Take over weights, moving average, optimiser and scaler, all of which were built for the saved
        stage.
        """
        parallel.load_model(self.model, tensors["model"])
        if self.optimizer:
            parallel.load_optimizer(self.model, self.optimizer, state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(tensors["ema"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])

    def count_update(self, num_batches: int) -> None:
        """Go one update and its micro-batches on."""
        self.step, self.stage_step = self.step + 1, self.stage_step + 1
        self.epoch_batch += num_batches

    def add_terms(self, terms: Terms) -> None:
        """Take one update's sum and count per loss term."""
        self.epoch_totals.add(terms)
        self.window_totals.add(terms)

    def end_window(self) -> dict[str, float]:
        """Return the mean loss terms since the last call and begin again."""
        means, self.window_totals = self.window_totals.means(), Totals()
        return means

    def end_epoch(self) -> dict[str, float]:
        """Return the epoch's mean loss terms and go on to the next epoch."""
        means, self.epoch_totals = self.epoch_totals.means(), Totals()
        self.epoch, self.epoch_batch, self.epochs_done = self.epoch + 1, 0, self.epochs_done + 1
        return means

    def next_stage(self) -> None:
        """Go on to the next stage: the weights stay, everything else begins again."""
        self.stage, self.epoch, self.epoch_batch, self.stage_step = self.stage + 1, 0, 0, 0
        self.optimizer = self.scaler = self.ema = None
        self.found_rate, self.best, self.evaluations_without_better = 0.0, math.nan, 0
        self.stage_ended = False
        self.epoch_totals, self.window_totals = Totals(), Totals()

    def note_monitor(self, value: float, training: TrainingConfig) -> bool:
        """Take an evaluation's monitored value; return whether it is the stage's best. NaN never is."""
        self.evaluated_step = self.step
        gain = (value - self.best) * (1 if training.monitor_mode == "max" else -1)
        better = not math.isnan(value) and (math.isnan(self.best) or gain > training.min_delta)
        if better:
            self.best, self.best_step, self.evaluations_without_better = value, self.step, 0
        else:
            self.evaluations_without_better += 1
        return better
