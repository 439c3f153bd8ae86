"""The gradient stepper: micro-batches → one update.

The gradient is that of the global loss: counts are added over all workers and micro-batches of an update
before the first backward pass, so NaN labels, tokens and short batches weigh the same on any number of
workers.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import math
from typing import NamedTuple

import torch
from torch import nn

from voxray.core import collectives
from voxray.core.batch import Batch
from voxray.core.place import BEGINNING, Place
from voxray.core.randomness import key, reseed
from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.train import parallel
from voxray.train.control import Control, HostNumbers, Wishes
from voxray.train.meter import Terms
from voxray.train.state import TrainState

NORM_EPS = 1e-6  # of torch's `clip_grads_with_norm_`: max_norm / (norm + 1e-6) is what it scales by


class Outcome(NamedTuple):
    """One update: each term's sum and count over all workers, the gradient's norm, whether it was applied.

    `finite` is on a GPU a tensor [] of bool: reading it makes the host wait for the device.
    """

    terms: Terms
    grad_norm: torch.Tensor
    finite: torch.Tensor | bool
    applied: bool
    wishes: Wishes


class GradientStepper:
    """Makes the updates of one stage."""

    def __init__(
        self,
        task: Task,
        state: TrainState,
        stage: Stage,
        module: nn.Module,
        device: torch.device,
        control: Control,
        writes: bool = True,
    ) -> None:
        """Keep what all updates of the stage share; `module` is what `parallel.wrap` returned.

        Without `writes` the task's `after_step` is not called: the updates are a trial.
        """
        self._task, self._state, self._stage, self._module = task, state, stage, module
        self._device, self._control, self._writes = device, control, writes
        self._shared = HostNumbers(device)
        self._rank, self._world_size = collectives.rank(), collectives.world_size()
        self._trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        training = stage.training
        self._may_skip = training.on_nonfinite != "stop" or training.precision == "fp16"
        # The host looks at every update where that is free, or where an update may have to be left out.
        self.checks_always = self._may_skip or device.type != "cuda"

    def update(self, micro_batches: list[Batch], place: Place = BEGINNING) -> Outcome:
        """Apply the update at `place`. One that is not finite is left out, buffers restored, if the stage
        says so.
        """
        state, self._task.place = self._state, place
        optimizer = state.optimizer
        assert optimizer is not None
        counts = total_counts(self._task, micro_batches, self._stage)
        self._task.before_step(state.model)
        buffers = [buffer.clone() for buffer in state.model.buffers()] if self._may_skip else []
        sums = self._gradients(micro_batches, counts)
        if state.scaler:
            state.scaler.unscale_(optimizer)
        grad_norm = clipped_norm(self._trained, self._stage.training.clip_grad_norm)
        totals, wishes = self._over_all_workers(sums)
        finite = all_finite([*totals.values(), grad_norm])
        applied = not self._may_skip or bool(finite)
        if applied:
            state.scaler.step(optimizer) if state.scaler else optimizer.step()
            if self._writes:
                self._task.after_step(state.model, parallel.unwrapped(self._module).terms)
        else:
            for buffer, before in zip(state.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        if state.scaler:
            state.scaler.update()
            finite = all_finite(list(totals.values()))  # a gradient beyond fp16 is what the scaler is for
        if state.ema and applied:
            state.ema.update(state.model, state.stage_step)
        terms = {name: (total, counts[name]) for name, total in totals.items()}
        return Outcome(terms, grad_norm, finite, applied, wishes)

    def _gradients(
        self, micro_batches: list[Batch], counts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Run forward and backward passes; return each term's sum over this worker's entries."""
        state, seed, rank = self._state, self._stage.training.seed, self._rank
        for parameter in self._trained:  # what `Optimizer.zero_grad` does, without its 9 µs
            parameter.grad = None
        compares = len(micro_batches) > 1 and self._stage.config.global_terms()
        if compares:
            self._look_ahead(micro_batches)
        sums: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(micro_batches):
            if compares:
                self._task.update_rows.replay(index)
            reseed(key(seed, "step", state.step, index, rank), self._device)
            ends_update = index == len(micro_batches) - 1
            with parallel.forward_context(self._module, self._stage, self._device, ends_update):
                weighted: dict[str, torch.Tensor] = self._module(batch, self._stage)
                self._backward(weighted, counts)
            for name, value in weighted.items():
                value = value.detach()
                sums[name] = sums[name].double() + value if name in sums else value
            self._control.beat()
        if compares:
            self._task.update_rows.forget()
        return sums

    @torch.no_grad()
    def _look_ahead(self, micro_batches: list[Batch]) -> None:
        """Run the micro-batches once without a gradient, for what their rows are compared by, with the same
        random numbers as afterwards; buffers (running statistics) stay what they were.
        """
        state, seed, rank = self._state, self._stage.training.seed, self._rank
        buffers = [buffer.clone() for buffer in state.model.buffers()]
        for index, batch in enumerate(micro_batches):
            self._task.update_rows.record(index)
            reseed(key(seed, "step", state.step, index, rank), self._device)
            with parallel.forward_context(self._module, self._stage, self._device, False):
                parallel.unwrapped(self._module)(batch, self._stage)
            self._control.beat()
        for buffer, before in zip(state.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _backward(self, weighted: dict[str, torch.Tensor], counts: dict[str, torch.Tensor]) -> None:
        """Add the gradient of Σ sum / count, times the workers: DDP and FSDP average over them.

        Where a gradient begins may be given to torch too, which then imports its compiler to compare shapes.
        """
        scaler = self._state.scaler
        seeds = [counts[name].to(value.dtype).reciprocal() for name, value in weighted.items()]
        if self._world_size > 1:
            seeds = [seed * self._world_size for seed in seeds]
        if scaler:
            seeds = [scaler.scale(seed) for seed in seeds]
        torch.autograd.backward([sum_ * seed for sum_, seed in zip(weighted.values(), seeds, strict=True)])

    def _over_all_workers(self, sums: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Wishes]:
        """Return the terms' sums and what any worker was asked for, exchanged in one message."""
        stop, save = self._control.should_stop(), self._control.should_save()
        if self._world_size == 1:
            return sums, Wishes(stop, save)
        asked_2 = torch.tensor([float(stop), float(save)], dtype=torch.float64)
        own = torch.cat(
            [torch.stack(list(sums.values())).double(), asked_2.to(self._device, non_blocking=True)]
        )
        total = collectives.all_reduce_sum(own)
        numbers = self._shared.read(total[-2:])
        wishes = Wishes(numbers[0] > 0, numbers[1] > 0) if numbers else Wishes()
        return dict(zip(sums, total, strict=False)), wishes


def clipped_norm(parameters: list[nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Clip the gradients to `max_norm`, where one is given; return their norm before it, float [].

    As `nn.utils.clip_grad_norm_`, which multiplies gradients that are short enough by 1, since a GPU would
    have to be waited for otherwise: here those on a CPU stay as they are.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    told = parallel.whole(norm)
    if max_norm is not None and not (told.device.type == "cpu" and float(told) + NORM_EPS <= max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return told


def all_finite(values: list[torch.Tensor]) -> torch.Tensor | bool:
    """Return whether all numbers [] are finite: a tensor where they lie on a GPU, which is not waited for."""
    if values[0].device.type == "cpu":
        return all(math.isfinite(value) for value in values)
    return torch.stack([value.double() for value in values]).isfinite().all()


def total_counts(task: Task, micro_batches: list[Batch], stage: Stage) -> dict[str, torch.Tensor]:
    """Return each term's count over all workers and micro-batches of the update, [], at least 1."""
    own: dict[str, torch.Tensor] = {}
    for batch in micro_batches:
        for name, count in task.normalizers(batch, stage).items():
            own[name] = own[name] + count if name in own else count
    if collectives.is_distributed():
        together = torch.stack([count.double() for count in own.values()])
        own = dict(zip(own, collectives.all_reduce_sum(together), strict=True))
    return {name: count.clamp(min=1) for name, count in own.items()}
