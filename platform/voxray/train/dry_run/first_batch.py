"""One real batch, forward and backward, with real weights: what shows that a run can start."""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from voxray.config.errors import RunError
from voxray.core.batch import Batch, BatchSource
from voxray.core.randomness import key
from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.train import parallel
from voxray.train.checkpoints import weights
from voxray.train.gradient import total_counts
from voxray.train.length import training_request
from voxray.train.optimisation.parameters import choose_trainable, train_mode

PROBE_ROWS = 4
AT_MOST_S = 10.0  # a whole batch that would take longer is not run


def first_batch(task: Task, source: BatchSource, stage: Stage) -> Batch:
    """Return the first batch of a stage on its first worker, on the CPU."""
    return task.collate(next(iter(source.batches(training_request(stage, 0)))))


def try_batch(
    task: Task,
    batch: Batch,
    stage: Stage,
    device: torch.device,
    start: weights.WeightsAt | None,
    tell: Callable[[str], Any],
) -> str:
    """Run one batch forward and backward and return a sentence with its loss, and with its weighted terms
    where there are several.

    A few rows go first; where they show that the whole batch takes long, they are all. A closed form needs no
    backward pass: its inputs and outputs are computed. Raises RunError when the loss is not finite.
    """
    seed = stage.training.seed
    torch.manual_seed(key(seed, "model"))
    model = task.build_model()
    if start is not None:
        weights.load_into(model, weights.read_weights(start), tell)
    model.to(device)
    batch = batch.to(device)
    if stage.training.stepper == "closed_form":
        x_BD, y_BO = task.closed_form(model, batch)
        return f"closed form of {x_BD.shape[1]} features and {y_BO.shape[1]} outputs for {len(x_BD)} rows"
    choose_trainable(model, stage.training)
    train_mode(model)
    batch = task.augment(batch, key(seed, "augment", stage.index, 0))
    few = batch.rows(slice(0, PROBE_ROWS)) if len(batch) > PROBE_ROWS else batch
    began = time.monotonic()
    loss = _loss(task, model, few, stage, device)
    seconds = (time.monotonic() - began) * len(batch) / len(few)
    if len(few) == len(batch):
        return f"{loss} of {len(batch)} rows"
    if device.type == "cpu" and seconds > AT_MOST_S:
        return f"{loss} of {len(few)} rows; all {len(batch)} would take about {seconds:.0f} s"
    began = time.monotonic()
    loss = _loss(task, model, batch, stage, device)
    return f"{loss} of {len(batch)} rows in {time.monotonic() - began:.2g} s"


def _loss(task: Task, model: nn.Module, batch: Batch, stage: Stage, device: torch.device) -> str:
    """Return the loss of one forward pass in words, after its backward pass."""
    module = parallel.LossModule(task, model)
    torch.manual_seed(key(stage.training.seed, "step", 0, 0, 0))  # dropout as in the run's first update
    counts = total_counts(task, [batch], stage)
    with parallel.forward_context(module, stage, device, ends_update=True):
        sums = module(batch, stage)
        means = {name: value / counts[name].to(value.dtype) for name, value in sums.items()}
        total = torch.stack(list(means.values())).sum()
        total.backward()
    model.zero_grad(set_to_none=True)
    loss = float(total.detach())
    if not torch.isfinite(total.detach()):
        parts = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in sums.items())
        raise RunError(
            f"the loss of the first batch is {loss}: {parts}; look at the data and training.precision"
        )
    terms = " + ".join(f"{name} {float(value.detach()):.4g}" for name, value in means.items())
    return f"loss {loss:.4g} = {terms}" if len(means) > 1 else f"loss {loss:.4g}"
