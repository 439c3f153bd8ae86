"""The gradient stepper: micro-batches → one update.

The gradient is that of the global loss: counts are added over all workers and micro-batches of an update
before the first backward pass, so NaN labels, tokens and short batches weigh the same on any number of
workers.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from dataclasses import dataclass

import torch
from torch import nn

from voxray.core import collectives
from voxray.core.batch import Batch
from voxray.core.randomness import key
from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.train import parallel
from voxray.train.control import Control, SharedVector, Wishes
from voxray.train.state import TrainState


@dataclass(frozen=True)
class Outcome:
    """One update: each term's [sum, count] over all workers, the gradient's norm, and whether it was applied.

    `finite` is a tensor [] of bool: reading it makes the host wait for the device.
    """

    terms: dict[str, torch.Tensor]
    grad_norm: torch.Tensor
    finite: torch.Tensor
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
        self._shared = SharedVector(device)
        training = stage.training
        self._may_skip = training.on_nonfinite != "stop" or training.precision == "fp16"
        # The host looks at every update where that is free, or where an update may have to be left out.
        self.checks_always = self._may_skip or device.type != "cuda"

    def update(self, micro_batches: list[Batch]) -> Outcome:
        """Apply one update. One that is not finite is left out, buffers restored, if the stage says so."""
        state, training = self._state, self._stage.training
        optimizer = state.optimizer
        assert optimizer is not None
        counts = total_counts(self._task, micro_batches, self._stage)
        buffers = [buffer.clone() for buffer in state.model.buffers()] if self._may_skip else []
        sums = self._gradients(micro_batches, counts)
        if state.scaler:
            state.scaler.unscale_(optimizer)
        grad_norm = clipped_norm(state.model, training.clip_grad_norm)
        totals, wishes = self._over_all_workers(sums)
        loss_is_finite = totals.isfinite().all()
        finite = loss_is_finite & grad_norm.isfinite()
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
            finite = loss_is_finite  # a gradient beyond fp16 is what the scaler is for
        if state.ema and applied:
            state.ema.update(state.model, state.stage_step)
        terms = {name: torch.stack([total, counts[name]]) for name, total in zip(sums, totals, strict=True)}
        return Outcome(terms, grad_norm, finite, applied, wishes)

    def _gradients(
        self, micro_batches: list[Batch], counts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Run forward and backward passes; return each term's sum over this worker's entries."""
        state, seed = self._state, self._stage.training.seed
        assert state.optimizer is not None
        state.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(micro_batches):
            torch.manual_seed(key(seed, "step", state.step, index, collectives.rank()))
            ends_update = index == len(micro_batches) - 1
            with parallel.forward_context(self._module, self._stage, self._device, ends_update):
                weighted: dict[str, torch.Tensor] = self._module(batch, self._stage)
                parts = [value / counts[name].to(value.dtype) for name, value in weighted.items()]
                total = torch.stack(parts).sum() * collectives.world_size()
                (state.scaler.scale(total) if state.scaler else total).backward()
            for name, value in weighted.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
            self._control.beat()
        return sums

    def _over_all_workers(self, sums: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Wishes]:
        """Return the terms' sums [N] and what any worker was asked for, exchanged in one message."""
        asked = [float(self._control.should_stop()), float(self._control.should_save())]
        wishes_2 = torch.tensor(asked, dtype=torch.float64).to(self._device, non_blocking=True)
        total = self._shared.total(torch.cat([torch.stack(list(sums.values())), wishes_2]))
        numbers = self._shared.read(total[-2:])
        wishes = Wishes(numbers[0] > 0, numbers[1] > 0) if numbers else Wishes()
        return total[:-2], wishes


def clipped_norm(model: nn.Module, max_norm: float | None) -> torch.Tensor:
    """Clip the gradients to `max_norm`, where one is given; return their norm before it, float [] ."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if max_norm is not None:
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return parallel.whole(norm)


def total_counts(task: Task, micro_batches: list[Batch], stage: Stage) -> dict[str, torch.Tensor]:
    """Return each term's count over all workers and micro-batches of the update, float64 [], at least 1."""
    own: dict[str, torch.Tensor] = {}
    for batch in micro_batches:
        for name, count in task.normalizers(batch, stage).items():
            own[name] = own.get(name, 0) + count.double()
    totals = collectives.all_reduce_sum(torch.stack(list(own.values()))).clamp(min=1)
    return dict(zip(own, totals, strict=True))
