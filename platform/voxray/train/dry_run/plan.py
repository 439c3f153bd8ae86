"""What `voxray train --dry-run` does: a run's size, what it needs, and one real batch; nothing is written."""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from voxray.config.errors import InputError
from voxray.core.registry import task_class
from voxray.core.run_config import RunConfig, Stage
from voxray.core.task import Task
from voxray.data.dataset import dataset_path, ensure_dataset, is_made
from voxray.data.local import LocalStream
from voxray.data.location import working_folder
from voxray.data.manifest import load_manifest
from voxray.data.source import choose_transport, open_source
from voxray.train.checkpoints import weights
from voxray.train.dry_run.estimate import (
    Memory,
    batch_bytes,
    check_disk,
    checkpoint_bytes,
    free_disk,
    free_memory,
    gigabytes,
    memory_of,
    num_checkpoints,
)
from voxray.train.dry_run.first_batch import first_batch, try_batch
from voxray.train.evaluated_rows import check_evaluated
from voxray.train.length import planned_updates, training_request, validation_request
from voxray.train.optimisation.parameters import choose_trainable
from voxray.train.run_folder import run_folder


@dataclass(frozen=True)
class StagePlan:
    """One stage's size. Rows and parameters are counted over all workers, memory on one."""

    name: str
    num_train_rows: int
    num_updates: int
    rows_per_update: int
    num_trainable: int
    num_frozen: int
    memory: Memory
    checkpoint_bytes: int


@dataclass(frozen=True)
class Plan:
    """What `--dry-run` prints: a run's size and needs, known before it starts."""

    num_train_rows: int  # of the stage that has most
    num_val_rows: int
    num_updates: int
    num_parameters: int
    stages: tuple[StagePlan, ...]
    transport: str  # and why
    num_checkpoints: int
    disk_free: int
    memory_free: int
    device: str
    tried: str  # what one real batch gave, or why none was run

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: what, value, and how it comes about."""
        largest = max(stage.checkpoint_bytes for stage in self.stages)
        disk = f"{self.num_checkpoints} of {gigabytes(largest)} at most; {gigabytes(self.disk_free)} are free"
        return [
            _row("training rows", self.num_train_rows),
            _row("validation rows", self.num_val_rows),
            _row("parameters", self.num_parameters),
            _row("updates", self.num_updates),
            *(row for stage in self.stages for row in _stage_rows(stage)),
            _row("free memory", gigabytes(self.memory_free), self.device),
            _row("checkpoints", gigabytes(self.num_checkpoints * largest), disk),
            _row("transport", *self.transport.split(": ", 1)),
            _row("one batch", self.tried),
        ]


def _row(what: str, value: Any, note: str = "") -> dict[str, Any]:
    return {"what": what, "value": value, "note": note}


def _stage_rows(stage: StagePlan) -> list[dict[str, Any]]:
    memory = stage.memory
    parts = (
        f"weights {gigabytes(memory.weights)}, gradients {gigabytes(memory.gradients)}, optimiser "
        f"{gigabytes(memory.moments)}, average {gigabytes(memory.average)}, batch {gigabytes(memory.batch)}; "
        "a forward pass needs more"
    )
    return [
        _row(
            f"{stage.name}: updates",
            stage.num_updates,
            f"{stage.rows_per_update} rows each, of {stage.num_train_rows}",
        ),
        _row(f"{stage.name}: trainable", stage.num_trainable, f"{stage.num_frozen} parameters are frozen"),
        _row(f"{stage.name}: memory", gigabytes(memory.total), parts),
    ]


def needs_ray(config: RunConfig) -> bool:
    """Return whether `plan` needs a connection to Ray: to make a synthetic dataset, or to read a stream."""
    try:
        dataset = dataset_path(config)
    except InputError:
        return is_made(config.data.path)
    return choose_transport(dataset, config.data)[0] == "stream"


def plan(config: RunConfig, tell: Callable[[str], Any] = print) -> Plan:
    """Check a run as far as can be without training, and return its size. Where `needs_ray`, the caller has
    connected to Ray.

    The dataset is opened (a synthetic one is made in the cache), the model is built on the meta device, and,
    where the estimate fits in free memory, with its real weights for one real batch. Nothing is written to
    RUN. Raises InputError for what is wrong with the config, or where the checkpoints cannot fit on the disk,
    RunError when the batch's loss is not finite.
    """
    run = run_folder(config)
    check_monitor(config)
    check_start_from(config)
    dataset = ensure_dataset(config)
    manifest = load_manifest(dataset)
    task = task_class(config.task)(config, manifest.statistics, manifest.schema)
    source = open_source(dataset, config.data, 0, config.scale.most_workers, task.read_stages())
    stages = config.resolved_stages()
    check_evaluated(task, source, stages)
    planned = [stage_plan(task, source, stage) for stage in stages]
    check_disk(config, max(stage.checkpoint_bytes for stage in planned), run.path)
    # The first stage starts from nothing of this run, so it is the one that can be tried.
    batch = first_batch(of_stage(task, stages[0]), source, stages[0])
    planned = [
        replace(entry, memory=replace(entry.memory, batch=_scaled(batch_bytes(batch), stages[0], stage)))
        for entry, stage in zip(planned, stages, strict=True)
    ]
    device = _device(config)
    free = free_memory(device)
    needed = planned[0].memory.total
    if needed > free:
        tried = f"not run: it needs {gigabytes(needed)}, and {gigabytes(free)} are free"
    else:
        tried = try_batch(of_stage(task, stages[0]), batch, stages[0], device, _weights(config), tell)
    evaluated = validation_request(stages[-1])
    return Plan(
        num_train_rows=max(stage.num_train_rows for stage in planned),
        num_val_rows=source.num_chosen(evaluated.split, evaluated.rules),
        num_updates=sum(stage.num_updates for stage in planned),
        num_parameters=max(stage.num_trainable + stage.num_frozen for stage in planned),
        stages=tuple(planned),
        transport=": ".join(choose_transport(dataset, config.data)),
        num_checkpoints=num_checkpoints(config),
        disk_free=free_disk(run.path),
        memory_free=free,
        device=str(device),
        tried=tried,
    )


def stage_plan(task: Task, source: LocalStream, stage: Stage) -> StagePlan:
    """Return the size of one stage; its batch is not counted yet. Raises InputError where no row is left, or
    where a glob of parameters matches none.
    """
    request = training_request(stage, 0)
    num_rows = source.num_chosen("train", request.rules)
    if num_rows == 0:
        raise InputError(
            f"stage '{stage.name}' has no training rows: data.filter, data.train_filter or the dataset "
            "leaves none"
        )
    with torch.device("meta"):
        model = of_stage(task, stage).build_model()
    choose_trainable(model, stage.training)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    training = stage.training
    return StagePlan(
        name=stage.name,
        num_train_rows=num_rows,
        num_updates=planned_updates(source, stage),
        rows_per_update=num_rows if training.stepper == "closed_form" else rows_per_update(stage),
        num_trainable=sum(number for number, is_trained in counts if is_trained),
        num_frozen=sum(number for number, is_trained in counts if not is_trained),
        memory=memory_of(model, stage),
        checkpoint_bytes=checkpoint_bytes(model, stage),
    )


def rows_per_update(stage: Stage) -> int:
    """Return the rows of one update over all workers."""
    return stage.training.batch_size * stage.training.accumulate_grad_batches


def of_stage(task: Task, stage: Stage) -> Task:
    """Return the task with the values that hold in a stage."""
    return type(task)(stage.config, task.statistics, task.dataset_schema)


def check_monitor(config: RunConfig) -> None:
    """Raise InputError when a stage monitors a metric that nobody reports, with the ones that there are."""
    problems: list[str] = []
    stages = config.resolved_stages()
    for stage in stages:
        known = task_class(config.task)(stage.config).reported()
        wanted = stage.training.monitor
        if wanted in known:
            continue
        near = difflib.get_close_matches(wanted, known, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = f" (stage '{stage.name}')" if len(stages) > 1 else ""
        problems.append(
            f"training.monitor: nobody reports '{wanted}'{where}; {hint}there is {', '.join(known)}"
        )
    if problems:
        raise InputError(*problems)


def check_start_from(config: RunConfig) -> None:
    """Raise InputError when a stage starts from weights that are nowhere. What an earlier stage of this run
    will leave is taken for granted.
    """
    earlier: list[str] = []
    for stage in config.resolved_stages():
        reference = stage.training.start_from
        name, _, which = reference.rpartition("/")
        is_earlier = bool(earlier) and which in weights.WHICH and (not name or name in earlier)
        if reference and not is_earlier:
            _resolved(config, reference, earlier)
        earlier.append(stage.name)


def _weights(config: RunConfig) -> weights.WeightsAt | None:
    """Return where the first stage's weights come from, if not from chance."""
    reference = config.resolved_stages()[0].training.start_from
    if not reference:
        return None
    return _resolved(config, reference, [])


def _resolved(config: RunConfig, reference: str, earlier: list[str]) -> weights.WeightsAt:
    return weights.resolve(
        reference, working_folder(config.storage.path), run_folder(config).checkpoints, earlier
    )


def _scaled(num_bytes: int, first: Stage, stage: Stage) -> int:
    return num_bytes * stage.training.batch_size // first.training.batch_size


def _device(config: RunConfig) -> torch.device:
    wants_gpu = config.scale.gpus_per_worker == "auto" or config.scale.gpus_per_worker > 0
    return torch.device("cuda", 0) if wants_gpu and torch.cuda.is_available() else torch.device("cpu")
