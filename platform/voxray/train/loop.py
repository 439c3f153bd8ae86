"""The training loop. `fit` reads as a table of contents; it imports no Ray and runs on lists in a test.

The gradient is that of the global loss: counts are added over all workers and micro-batches of an update
before the first backward pass, so NaN labels, tokens and short batches weigh the same on any number of
workers.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from voxray.config.errors import RunError
from voxray.core import collectives
from voxray.core.batch import Batch, BatchSource, EpochRequest
from voxray.core.losses import LossTerms
from voxray.core.randomness import key
from voxray.core.run_config import RunConfig, Stage
from voxray.core.task import Task
from voxray.nn.global_batch_norm import GlobalBatchNorm
from voxray.train import checkpoint
from voxray.train.device import on_device
from voxray.train.evaluate import numbers, summarize_split
from voxray.train.length import ended, planned_updates, training_request
from voxray.train.optim import build_optimizer, learning_rate, set_learning_rate
from voxray.train.run_folder import RunFolder
from voxray.train.state import TrainState

Report = Callable[[dict[str, float]], None]


@dataclass
class Fit:
    """What stays the same while one process trains a run."""

    task: Task
    source: BatchSource
    config: RunConfig
    run: RunFolder
    report: Report
    device: torch.device
    started: float = field(default_factory=time.monotonic)
    rows_seen: int = 0

    def log(self, record: dict[str, object]) -> None:
        """Append a record to the run's log, from rank 0 alone."""
        if collectives.rank() == 0:
            self.run.log({**record, "time_s": round(time.monotonic() - self.started, 3)})


class LossModule(nn.Module):
    """The one module that DDP wraps: forward(batch, stage) is the task's loss."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        """Hold the model; the task is no module and stays outside the state."""
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: Batch, stage: Stage) -> LossTerms:
        """Return the task's loss terms."""
        return self.task.loss(self.model, batch, stage)


def fit(
    task: Task, source: BatchSource, config: RunConfig, run: RunFolder, report: Report, device: torch.device
) -> None:
    """Train `config` from where RUN's newest valid checkpoint stands; every worker calls this.

    `report` is called once per epoch on every worker with the epoch's numbers. Raises RunError when the loss
    stops being finite.
    """
    loop = Fit(task, source, config, run, report, device)
    stages = config.resolved_stages()
    state = start(loop, stages)
    for stage in stages[state.stage :]:
        run_stage(loop, state, stage)
        if stage.index + 1 < len(stages):
            state.next_stage()
    finish(loop, state, stages[-1])


def start(loop: Fit, stages: list[Stage]) -> TrainState:
    """Build the model, seeded, and take over the newest checkpoint where there is one (rank 0 chooses it)."""
    torch.manual_seed(key(loop.config.training.seed, "model"))
    state = TrainState(loop.task.build_model().to(loop.device))
    chosen = None
    if collectives.rank() == 0:
        chosen = checkpoint.newest(
            loop.run.checkpoints, lambda text: loop.log({"kind": "note", "text": text})
        )
    chosen = collectives.all_gather_objects(chosen)[0]
    if chosen is not None:
        model, saved = checkpoint.load(chosen)
        state.load(model, saved, build_optimizer(state.model, stages[saved["stage"]].training))
    if collectives.rank() == 0 and loop.run.log_file.exists():
        loop.log(
            {"kind": "resume", "step": state.step, "checkpoint": chosen.name if chosen else "the beginning"}
        )
    return state


def run_stage(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Train the epochs that are left of a stage; evaluate, report and save after each."""
    training = stage.training
    if state.optimizer is None:
        state.optimizer = build_optimizer(state.model, training)
    module = wrap(LossModule(loop.task, state.model), loop.device)
    planned = planned_updates(loop.source, stage, loop.config)
    while not ended(state, training):
        train_metrics = train_epoch(loop, state, stage, module, planned)
        state.epoch += 1
        summary = summarize_split(loop.task, state.model, loop.source, "val", stage, loop.device)
        metrics = {**train_metrics, **summary}
        end_epoch(loop, state, stage, metrics)


def wrap(module: LossModule, device: torch.device) -> nn.Module:
    """Wrap in DDP when several workers train; buffers are global already (GlobalBatchNorm), so none is
    broadcast.
    """
    if not collectives.is_distributed():
        return module
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, forward_sync_buffers=False)


def train_epoch(
    loop: Fit, state: TrainState, stage: Stage, module: nn.Module, planned: int
) -> dict[str, float]:
    """Make one update per group of micro-batches; return the epoch's mean loss terms."""
    training = stage.training
    request = training_request(loop.config, stage, state.epoch)
    state.model.train()
    meter = Meter()
    epoch_meter = Meter()
    for micro_batches, waited_s in updates(loop, request, training.accumulate_grad_batches):
        rate = learning_rate(state.stage_step, planned, training)
        terms = update(loop, state, stage, module, micro_batches, rate)
        rows = sum(int(batch.valid_B.sum()) for batch in micro_batches)
        loop.rows_seen += rows
        for each in (meter, epoch_meter):
            each.add(terms, rows, waited_s)
        if state.step % loop.config.logging.log_every_n_steps == 0:
            numbers_now = meter.read()
            loop.log({"kind": "step", **place(state, stage), **numbers_now, "learning_rate": rate})
            check_finite(numbers_now, state)
            meter = Meter()
        if training.steps is not None and state.stage_step >= training.steps:
            break
    means = {name: value for name, value in epoch_meter.read().items() if name.startswith("train/")}
    check_finite(means, state)
    return means


def updates(loop: Fit, request: EpochRequest, group: int) -> Iterator[tuple[list[Batch], float]]:
    """Yield the micro-batches of one update after the other, on the device and augmented, and the seconds
    waited.
    """
    augment_key = key(request.seed, "augment", request.stage, request.epoch)
    collated = (loop.task.collate(columns) for columns in loop.source.batches(request))
    batches = on_device(collated, loop.device)
    while True:
        before = time.monotonic()
        micro_batches = [loop.task.augment(batch, augment_key) for batch in islice(batches, group)]
        if not micro_batches:
            return
        yield micro_batches, time.monotonic() - before


def update(
    loop: Fit, state: TrainState, stage: Stage, module: nn.Module, micro_batches: list[Batch], rate: float
) -> dict[str, torch.Tensor]:
    """Apply one update; return each term's [sum, count] over this worker's rows (count over all workers)."""
    assert state.optimizer is not None
    training = stage.training
    counts = total_counts(loop.task, micro_batches, stage)
    sums: dict[str, torch.Tensor] = {}
    last: LossTerms = {}
    state.optimizer.zero_grad(set_to_none=True)
    for index, batch in enumerate(micro_batches):
        torch.manual_seed(key(loop.config.training.seed, "step", state.step, index, collectives.rank()))
        ends_update = index == len(micro_batches) - 1
        with forward_context(module, training.precision, loop.device, ends_update):
            last = module(batch, stage)
            total = torch.stack([t.weight * t.sum / counts[n] for n, t in last.items()]).sum()
            (total * collectives.world_size()).backward()
        for name, term in last.items():
            sums[name] = sums.get(name, 0) + term.weight * term.sum.detach()
    if training.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), training.clip_grad_norm)
    set_learning_rate(state.optimizer, rate)
    state.optimizer.step()
    state.step += 1
    state.stage_step += 1
    loop.task.after_step(state.model, last)
    return {name: torch.stack([value.double(), counts[name].double()]) for name, value in sums.items()}


def total_counts(task: Task, micro_batches: list[Batch], stage: Stage) -> dict[str, torch.Tensor]:
    """Return each term's count over all workers and micro-batches of the update, at least 1."""
    counts: dict[str, torch.Tensor] = {}
    for batch in micro_batches:
        for name, count in task.normalizers(batch, stage).items():
            counts[name] = counts.get(name, torch.zeros_like(count)) + count
    return {name: collectives.all_reduce_sum(count).clamp(min=1) for name, count in counts.items()}


@contextlib.contextmanager
def forward_context(
    module: nn.Module, precision: str, device: torch.device, ends_update: bool
) -> Generator[None]:
    """Autocast, BatchNorm over all workers, and DDP's gradient exchange at the update's last micro-batch
    only.
    """
    with contextlib.ExitStack() as stack:
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        if isinstance(module, DistributedDataParallel):
            stack.enter_context(GlobalBatchNorm())
            if not ends_update:
                stack.enter_context(module.no_sync())
        yield


@dataclass
class Meter:
    """Adds up loss terms, rows and the time spent waiting for data since it was made."""

    terms: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    rows: int = 0
    waited_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, terms: dict[str, torch.Tensor], rows: int, waited_s: float) -> None:
        """Take one update's [sum, count] per term, its rows on this worker and the seconds it waited for
        them.
        """
        self.rows += rows
        self.waited_s += waited_s
        for name, value in terms.items():
            self.terms[name] = value if name not in self.terms else self.terms[name] + value

    def read(self) -> dict[str, float]:
        """Return the mean of each term over all workers' entries, samples/s and the share of time spent
        waiting.
        """
        elapsed = max(time.monotonic() - self.started, 1e-9)
        means: dict[str, float] = {}
        for name, value in self.terms.items():
            summed = float(collectives.all_reduce_sum(value[0]))
            means[f"train/{name}"] = summed / float(value[1])
        total = sum(means.values())
        rows = collectives.all_reduce_sum(torch.tensor(float(self.rows)))
        return {
            "train/loss": total,
            **(means if len(means) > 1 else {}),
            "samples_per_s": round(float(rows) / elapsed, 2),
            "data_wait_share": round(self.waited_s / elapsed, 4),
        }


def check_finite(metrics: dict[str, float], state: TrainState) -> None:
    """Raise RunError when a loss is NaN or infinite, before anything made from it is saved."""
    for name, value in metrics.items():
        if name.startswith("train/") and not math.isfinite(value):
            raise RunError(
                f"{name} is {value} at step {state.step}; "
                "lower training.learning_rate or set training.clip_grad_norm"
            )


def end_epoch(loop: Fit, state: TrainState, stage: Stage, metrics: Mapping[str, object]) -> None:
    """Log the epoch, note the monitored value, save, and report."""
    training = stage.training
    value = metrics[training.monitor]
    assert isinstance(value, float)
    better = state.note_monitor(value, training)
    if training.early_stopping and state.epochs_without_better >= training.patience:
        state.stage_ended = True
    loop.log({"kind": "epoch", **place(state, stage), "epoch": state.epoch - 1, **metrics})
    every = loop.config.checkpoints.save_every_n_epochs
    keep_best = better and loop.config.checkpoints.save_best
    if collectives.rank() == 0 and (ended(state, training) or keep_best or state.epoch % every == 0):
        save(loop, state, training.monitor if keep_best else None)
    loop.report({"epoch": state.epoch, "step": state.step, **numbers(metrics)})


def save(loop: Fit, state: TrainState, best_metric: str | None) -> None:
    """Write a checkpoint; name it the best where `best_metric` is given; delete what need not be kept."""
    folder = loop.run.checkpoints
    saved = checkpoint.save(
        folder, state.step, state.model.state_dict(), state.state_dict(), loop.config.model_dump(mode="json")
    )
    if best_metric:
        checkpoint.point_best(folder, saved, best_metric, state.best)
    checkpoint.prune(folder, loop.config.checkpoints.keep)


def place(state: TrainState, stage: Stage) -> dict[str, object]:
    """Where the run stands, for a record."""
    return {"stage": stage.name, "epoch": state.epoch, "step": state.step}


def finish(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Log what each worker did, and the end."""
    mine = {
        "kind": "rank",
        "rank": collectives.rank(),
        "world_size": collectives.world_size(),
        "rows": loop.rows_seen,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    for record in collectives.all_gather_objects(mine):
        loop.log(record)
    best = {"metric": stage.training.monitor, "value": state.best, "step": state.best_step}
    loop.log({"kind": "end", "status": "finished", "best": best})
    collectives.barrier()
