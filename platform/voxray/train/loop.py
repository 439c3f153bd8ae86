"""The training loop. `fit` reads as a table of contents; it imports no Ray and runs on lists in a test."""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import os
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from voxray.core import collectives
from voxray.core.batch import Batch, BatchSource
from voxray.core.run_config import RunConfig, Stage
from voxray.core.task import Task
from voxray.train import diagnostics, faults, parallel
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.adopt import take_in
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.config import MODEL_PARAMS
from voxray.train.control import Control, Stopped, Wishes
from voxray.train.drawn import draw_pictures
from voxray.train.evaluate import evaluate_request, numbers
from voxray.train.fit_context import Fit, Report
from voxray.train.gradient import GradientStepper
from voxray.train.length import ended, planned_epochs, planned_updates, training_request, validation_request
from voxray.train.meter import Speed
from voxray.train.micro_batches import updates
from voxray.train.optimisation import schedules
from voxray.train.optimisation.parameters import train_mode
from voxray.train.ridge import closed_form
from voxray.train.run_folder import RunFolder
from voxray.train.stage_start import begin_stage, build, restored, stage_task
from voxray.train.state import TrainState

URGENT_SAVE_S = 10.0


class Planned(NamedTuple):
    """The length of a whole stage."""

    updates: int
    epochs: int


def fit(
    task: Task,
    source: BatchSource,
    config: RunConfig,
    run: RunFolder,
    report: Report,
    device: torch.device,
    control: Control | None = None,
) -> None:
    """Train `config` from where RUN's newest valid checkpoint stands; every worker calls this.

    `report` is called after each evaluation on every worker with its numbers. Raises RunError when the loss
    stops being finite, Stopped when the run was asked to stop and its state is saved.
    """
    loop = Fit(task, source, config, run, report, device, control or Control())
    with diagnostics.settings(config, device), faults.noted(loop), loop.saving():
        while True:
            try:
                run_stages(loop)
                return
            except faults.RolledBack as error:
                loop.finish_saving()
                loop.to_skip.append(error.place)


def run_stages(loop: Fit) -> None:
    """Go through the stages that are left."""
    stages = loop.config.resolved_stages()
    state = start(loop, stages)
    for stage in stages[state.stage :]:
        run_stage(loop, state, stage)
        if stage.index + 1 < len(stages):
            state.next_stage()
    finish(loop, state, stages[-1])


def start(loop: Fit, stages: list[Stage]) -> TrainState:
    """Build the model, seeded, and take over the newest checkpoint where there is one (rank 0 chooses it)."""
    chosen = None
    if collectives.rank() == 0:
        take_in(loop.run.checkpoints, loop.note)
        chosen = checkpoint.newest(loop.run.checkpoints, loop.note)
    chosen = collectives.all_gather_objects(chosen)[0]
    if chosen is None:
        state = TrainState(build(loop, stages[0]))
    else:
        tensors, saved = checkpoint.load(loop.at_hand(chosen))
        state = restored(loop, stages[saved["stage"]], tensors, saved)
    state.skipped = [*state.skipped, *(place for place in loop.to_skip if place not in state.skipped)]
    loop.state = state
    workers = collectives.all_gather_objects(this_worker())
    if loop.run.log_file.exists():
        name = chosen.name if chosen else "the beginning"
        loop.log({"kind": "resume", "step": state.step, "checkpoint": name})
    loop.log({"kind": "workers", "workers": workers})
    return state


def this_worker() -> dict[str, object]:
    """Who this process is, for a record."""
    who = {"rank": collectives.rank(), "world_size": collectives.world_size()}
    return {**who, "host": socket.gethostname(), "pid": os.getpid()}


def run_stage(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Train what is left of a stage; evaluate, report and save on the way."""
    task = stage_task(loop, stage)
    if not state.is_begun:
        begin_stage(loop, state, stage)
    if stage.training.stepper == "closed_form":
        solve_stage(loop, state, stage)
        return
    module = parallel.wrap(parallel.LossModule(task, state.model), loop.device)
    stepper = GradientStepper(task, state, stage, module, loop.device, loop.control)
    planned = Planned(planned_updates(loop.source, stage), planned_epochs(loop.source, stage))
    while not ended(state, stage.training):
        train_epoch(loop, state, stage, stepper, planned)
        end_epoch(loop, state, stage)


def solve_stage(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Fit the stage's closed form in one pass over the training rows, evaluate, save."""
    if ended(state, stage.training):
        return
    task = stage_task(loop, stage)
    found = closed_form.fit_stage(task, state.model, stored(loop, task, stage), stage.training, loop.device)
    loop.log({**place_of(state, stage), **found.record()})
    if found.warning:
        loop.note(found.warning)
    entries = torch.tensor(found.num_rows * found.num_targets, dtype=torch.float64)
    state.add_terms({"mse": (found.train_mse * entries, entries)})
    state.step, state.stage_step, state.stage_ended = state.step + 1, 1, True
    end_epoch(loop, state, stage)


def stored(loop: Fit, task: Task, stage: Stage) -> Iterator[Batch]:
    """Yield this worker's training batches as they are stored, and count their rows."""
    for columns in loop.source.batches(training_request(stage, 0)):
        batch = task.collate(columns)
        loop.rows_seen += int(batch.valid_B.sum())
        yield batch
        loop.control.beat()


def train_epoch(
    loop: Fit, state: TrainState, stage: Stage, stepper: GradientStepper, planned: Planned
) -> None:
    """Make the updates that are left of an epoch."""
    training = stage.training
    request = training_request(stage, state.epoch, state.epoch_batch)
    guard = faults.NonFinite(loop, stage, stepper.checks_always)
    speed = Speed()
    train_mode(state.model)
    num_batches = loop.source.num_batches(request)
    groups = updates(loop, stage_task(loop, stage), request, training.accumulate_grad_batches)
    for group in diagnostics.watched(groups, loop, state, stage):
        if [state.stage, state.epoch, state.epoch_batch] in state.skipped:
            state.count_update(group.num_batches)
            continue
        assert state.optimizer is not None
        place = schedules.Place(state.stage_step, planned.updates, state.epoch, planned.epochs)
        rate = schedules.set_rates(state.optimizer, training, place)
        loop.task.place = place  # `state_numbers` may tell it
        outcome = stepper.update(group.micro_batches, place)
        guard.look(state, outcome, group)
        state.count_update(group.num_batches)
        if outcome.applied:
            state.add_terms(outcome.terms)
        loop.rows_seen, loop.updates_seen = loop.rows_seen + group.num_rows, loop.updates_seen + 1
        speed.add(group.num_rows, group.waited_s)
        if state.step % loop.config.logging.log_every_n_steps == 0:
            guard.check(state)
            log_step(loop, state, stage, speed, rate, outcome.grad_norm, planned.updates)
            speed = Speed()
        if training.steps is not None and state.stage_step >= training.steps:
            break
        inside_epoch(loop, state, stage, outcome.wishes, guard, state.epoch_batch / num_batches)
        if state.stage_ended:
            break
    guard.check(state)


def inside_epoch(
    loop: Fit, state: TrainState, stage: Stage, wishes: Wishes, guard: faults.NonFinite, share: float
) -> None:
    """Evaluate and save after an update, where that is due or asked for; `share` of the epoch is done, and
    after its last update the epoch's end saves what is due. A report comes after its checkpoint: a scheduler
    may pause the run there.
    """
    validate = stage.training.validate_every.steps
    is_best, reported = False, dict[str, float]()
    if validate is not None and state.stage_step % validate == 0:
        guard.check(state)
        metrics = {**state.epoch_totals.means(), **evaluate_now(loop, state, stage)}
        is_best = note_evaluation(loop, state, stage, metrics) and loop.config.checkpoints.save_best
        epochs = state.epochs_done + share
        logged = {**metrics, **stored_numbers(loop, state)}
        loop.log({"kind": "validation", **place_of(state, stage), "epochs": epochs, **logged})
        reported = {"epoch": state.epoch, "step": state.step, "epochs": epochs, **numbers(metrics)}
    is_asked = wishes.stop or wishes.save
    if is_asked or is_best or (is_save_due(loop, state) and (share < 1 or reported)):
        guard.check(state)
        save(loop, state, stage, is_best, is_urgent=is_asked)
    if reported:
        loop.report(reported)
        train_mode(state.model)
    if wishes.stop:
        loop.finish_saving()
        raise Stopped


def end_epoch(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Log the epoch; evaluate, save and report where that is due."""
    training, checkpoints = stage.training, loop.config.checkpoints
    means = state.end_epoch()
    metrics: dict[str, object] = dict(means)
    every = training.validate_every
    is_due = every.steps is None and state.epoch % every.epochs == 0
    is_better = is_evaluated = False
    if (is_due or ended(state, training)) and state.evaluated_step != state.step:
        metrics |= evaluate_now(loop, state, stage)
        is_evaluated = True
        is_better = note_evaluation(loop, state, stage, metrics)
    place = {**place_of(state, stage), "epoch": state.epoch - 1, "epochs": state.epochs_done}
    loop.log({"kind": "epoch", **place, **metrics, **stored_numbers(loop, state)})
    is_best = is_better and checkpoints.save_best
    is_save_epoch = state.epoch % checkpoints.save_every_n_epochs == 0
    if ended(state, training) or is_best or is_save_epoch or is_save_due(loop, state):
        is_kept = checkpoints.save_last or stage.index + 1 < len(loop.config.resolved_stages())
        save(loop, state, stage, is_best, ends_stage=ended(state, training) and is_kept)
    if is_evaluated:
        place = {"epoch": state.epoch, "step": state.step, "epochs": state.epochs_done}
        loop.report({**place, **numbers(metrics)})


def is_save_due(loop: Fit, state: TrainState) -> bool:
    """Whether `checkpoints.save_every_n_steps` asks for a checkpoint after this update."""
    every = loop.config.checkpoints.save_every_n_steps
    return every is not None and state.step % every == 0


def evaluate_now(loop: Fit, state: TrainState, stage: Stage) -> dict[str, float | list[float]]:
    """Return the stage's validation metrics, named `val/metric`."""
    task, request = stage_task(loop, stage), validation_request(stage)
    merged = evaluate_request(
        task, state.evaluated, loop.source, request, stage, loop.device, loop.control.beat
    )
    draw_pictures(loop, task, state.evaluated, request, stage.name, state.step)
    metrics = {f"val/{name}": value for name, value in task.summarize(merged).items()}
    return {**metrics, MODEL_PARAMS: float(sum(p.numel() for p in state.model.parameters()))}


def stored_numbers(loop: Fit, state: TrainState) -> dict[str, float | list[float]]:
    """Return what the model has stored, for a record: of rank 0, which writes it."""
    return loop.task.state_numbers(state.model) if collectives.rank() == 0 else {}


def note_evaluation(loop: Fit, state: TrainState, stage: Stage, metrics: Mapping[str, object]) -> bool:
    """Take the monitored value; return whether it is the stage's best; end the stage if patience is out."""
    training = stage.training
    value = metrics[training.monitor]
    assert isinstance(value, float)
    is_better = state.note_monitor(value, training)
    if training.early_stopping and state.evaluations_without_better >= training.patience:
        state.stage_ended = True
    return is_better


def log_step(
    loop: Fit, state: TrainState, stage: Stage, speed: Speed, rate: float, norm: torch.Tensor, planned: int
) -> None:
    """Log the mean loss terms since the last record, and how fast they came."""
    means = state.end_window()
    now = speed.read()
    loop.log(
        {
            "kind": "step",
            **place_of(state, stage),
            "batch": state.epoch_batch,
            **means,
            "learning_rate": rate,
            "grad_norm": round(float(norm), 6),
            **numbers(stored_numbers(loop, state)),
            **now,
            **loop.progress(state.stage_step, planned),
            **diagnostics.memory(loop.device),
        }
    )


def save(
    loop: Fit,
    state: TrainState,
    stage: Stage,
    is_best: bool = False,
    ends_stage: bool = False,
    is_urgent: bool = False,
) -> None:
    """Write a checkpoint, named the stage's best where it is, and delete what need not be kept.

    `is_urgent`: the process is to end soon; where a save takes long, that is told beforehand.
    """
    if not (collectives.rank() == 0 or stage.config.scale.strategy == "fsdp"):
        return
    tensors, plain = state.tensors(), state.state_dict()
    if loop.saver is None:
        return
    best = checkpoint.Best(stage.training.monitor, state.best, stage.name, stage.index) if is_best else None
    taken = snapshot(state.step, tensors, plain, loop.config.model_dump(mode="json"))
    estimate_s = loop.saver.estimate_seconds(taken.num_bytes)
    if is_urgent and estimate_s > URGENT_SAVE_S:
        loop.note(f"saving {taken.num_bytes / 1e9:.1f} GB at update {state.step}: about {estimate_s:.0f} s")
    loop.saver.save(taken, best, stage.index if ends_stage else None)
    loop.log({"kind": "checkpoint", **place_of(state, stage), "best": is_best})


def place_of(state: TrainState, stage: Stage) -> dict[str, object]:
    """Where the run stands, for a record."""
    return {"stage": stage.name, "epoch": state.epoch, "step": state.step}


def finish(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Wait for the last checkpoint; log what each worker did, and the end."""
    loop.finish_saving()
    if loop.saver and not loop.config.checkpoints.save_last and checkpoint.best(loop.run.checkpoints):
        checkpoint.prune(loop.run.checkpoints, 0, loop.note)
    for record in collectives.all_gather_objects({**this_worker(), "rows": loop.rows_seen}):
        loop.log({"kind": "rank", **record})
    best = {"metric": stage.training.monitor, "value": state.best, "step": state.best_step}
    loop.log({"kind": "end", "status": "finished", "best": best})
    collectives.barrier()
