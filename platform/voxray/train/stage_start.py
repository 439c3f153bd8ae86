"""How a stage begins: its task, its model, the weights it starts from, its optimiser, its learning rate."""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core import collectives
from voxray.core.randomness import key
from voxray.core.run_config import RunConfig, Stage
from voxray.core.task import Task
from voxray.data.location import working_folder
from voxray.train import parallel
from voxray.train.checkpoints import weights
from voxray.train.config import TrainingConfig
from voxray.train.fit_context import Fit
from voxray.train.gradient import GradientStepper
from voxray.train.length import training_request
from voxray.train.micro_batches import Group, updates
from voxray.train.optimisation import lr_finder
from voxray.train.optimisation.ema import Ema
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.optimisation.parameters import choose_trainable, train_mode
from voxray.train.state import TrainState


def stage_task(loop: Fit, stage: Stage) -> Task:
    """Return the task with the values that hold in a stage."""
    if stage.config == loop.task.config:
        return loop.task
    return type(loop.task)(stage.config, loop.task.statistics, loop.task.dataset_schema)


def build(loop: Fit, stage: Stage) -> nn.Module:
    """Return a stage's model, its random weights seeded."""
    torch.manual_seed(key(loop.config.training.seed, "model"))
    return stage_task(loop, stage).build_model().to(loop.device)


def begin_stage(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Prepare the model for a stage that begins: another one where its values ask for it, weights, optimiser,
    rate.
    """
    stages = loop.config.resolved_stages()
    before = stages[stage.index - 1] if stage.index else None
    if before is not None and model_values(before.config) != model_values(stage.config):
        old = parallel.model_state(state.model)
        state.model = build(loop, stage)
        start_with(loop, state.model, old, f"the end of stage '{before.name}'")
    if stage.training.start_from:
        loop.finish_saving()
        collectives.barrier()  # what another worker's stage saved is there now
        if loop.mirror and collectives.rank():
            loop.mirror.open()
        earlier = [each.name for each in stages[: stage.index]]
        runs = working_folder(loop.config.storage.path)
        found = weights.resolve(stage.training.start_from, runs, loop.run.checkpoints, earlier)
        start_with(loop, state.model, weights.read_weights(found), found.text)
    if stage.index == 0:
        start_parts(loop, state.model)
    equip(loop, state, stage)
    if stage.training.lr_finder != "off":
        find_rate(loop, state, stage)


def model_values(config: RunConfig) -> dict[str, Any]:
    """Return the sections that a task's model may depend on: its own ones, such as `model` and `memory`."""
    common = set(RunConfig.model_fields) | {"objective"}
    return {name: value for name, value in config.model_dump().items() if name not in common}


def start_with(loop: Fit, model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load weights by name; what they lack, or what the model has no place for, is told."""
    loop.note(f"weights from {origin}")
    weights.load_into(model, state, loop.note)


def start_parts(loop: Fit, model: nn.Module) -> None:
    """Load each module of `training.parts` from what it names; such weights fit whole or not at all."""
    modules = dict(model.named_modules())
    for name, reference in loop.config.training.parts.items():
        if not name or name not in modules:
            known = ", ".join(child for child, _ in model.named_children())
            raise InputError(f"training.parts.{name}: the model has no such module; it has {known}")
        found = weights.resolve(reference, working_folder(loop.config.storage.path), loop.run.checkpoints, ())
        loop.note(f"{name}: weights from {found.text}")
        own = loop.task.part_weights(name, modules[name], weights.read_weights(found), loop.note)
        loaded = weights.load_into(modules[name], own, loop.note)
        if loaded.missing:
            raise InputError(
                f"training.parts.{name}: {found.text} lacks {', '.join(loaded.missing[:3])}; "
                "name a run of the same architecture"
            )


def equip(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Choose what is trained, split the model over the workers where that is asked for, and build the
    optimiser, the scaler and the moving average of a stage.
    """
    training = stage_rates(stage.training, state)
    choose_trainable(state.model, training)
    parallel.place(state.model, stage, loop.device)
    if training.stepper == "closed_form":
        return
    if stage.config.scale.strategy == "fsdp" and (training.ema_decay or training.precision == "fp16"):
        raise InputError(
            "scale.strategy=fsdp goes with neither training.ema_decay nor precision=fp16; use bf16"
        )
    state.optimizer = build_optimizer(state.model, training, loop.device)
    state.scaler = torch.amp.GradScaler(loop.device.type) if training.precision == "fp16" else None
    state.ema = Ema(state.model, training.ema_decay) if training.ema_decay else None


def stage_rates(training: TrainingConfig, state: TrainState) -> TrainingConfig:
    """Return `training` with the rate that the LR finder found, where it found one; the rates of parameter
    globs keep their ratio to it, as they had it while it was looked for.
    """
    if not state.found_rate:
        return training
    ratio = state.found_rate / training.learning_rate
    globs = {
        glob: own.model_copy(update={"learning_rate": own.learning_rate * ratio})
        if own.learning_rate
        else own
        for glob, own in training.parameters.items()
    }
    return training.model_copy(update={"learning_rate": state.found_rate, "parameters": globs})


def restored(
    loop: Fit, stage: Stage, tensors: dict[str, dict[str, torch.Tensor]], saved: dict[str, Any]
) -> TrainState:
    """Return the state that a checkpoint holds; it stands in `stage`, whose config holds from here on: where
    the checkpoint is another run's (PBT), this run's rates, weight decay and decay of the average.
    """
    state = TrainState(build(loop, stage))
    state.load_place(saved)
    if saved["optimizer"]:
        equip(loop, state, stage)
    state.load_tensors(tensors, saved)
    return state


def find_rate(loop: Fit, state: TrainState, stage: Stage) -> None:
    """Look for the stage's learning rate on copies of everything that it changes, and draw what was seen.

    Every worker does the same updates. Trained parameters and buffers are put back exactly (frozen ones never
    move, and may fill the memory already), the optimiser is built anew, and no generator's state matters.
    """
    trial = TrainState(state.model)
    equip(loop, trial, stage)
    trained = (value for value in state.model.parameters() if value.requires_grad)
    changing: list[torch.Tensor] = [*trained, *state.model.buffers()]
    kept = [value.detach().clone() for value in changing]
    trial.ema = None
    assert trial.optimizer is not None
    task = stage_task(loop, stage)
    module = parallel.wrap(parallel.LossModule(task, state.model), loop.device)
    stepper = GradientStepper(task, trial, stage, module, loop.device, loop.control, writes=False)
    train_mode(state.model)
    groups = _endless(loop, task, stage)
    shares = [group["lr"] / stage.training.learning_rate for group in trial.optimizer.param_groups]

    def update(rate: float) -> float:
        assert trial.optimizer is not None
        for group, share in zip(trial.optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        outcome = stepper.update(next(groups).micro_batches)
        trial.count_update(1)
        return sum(float(value[0] / value[1]) for value in outcome.terms.values())

    rule = stage.training.lr_finder
    assert rule != "off"
    curve = lr_finder.find(rule, update)
    with torch.no_grad():
        for value, before in zip(changing, kept, strict=True):
            value.copy_(before)
            value.grad = None
    _tell(loop, state, stage, curve)
    equip(loop, state, stage)


def _endless(loop: Fit, task: Task, stage: Stage) -> Iterator[Group]:
    epoch = 0
    while True:
        request = training_request(stage, epoch)
        yield from updates(loop, task, request, stage.training.accumulate_grad_batches)
        epoch += 1


def _tell(loop: Fit, state: TrainState, stage: Stage, curve: lr_finder.Curve) -> None:
    state.found_rate = curve.rate or 0.0
    loop.log({"kind": "lr_finder", "stage": stage.name, **curve.to_json()})
    name = f"figures/lr_finder_{stage.name}.png"
    if collectives.rank() == 0:
        (loop.run.path / "figures").mkdir(parents=True, exist_ok=True)
        lr_finder.draw(curve, loop.run.path / name)
    loop.log({"kind": "figure", "path": name, "title": f"LR finder, {stage.name}", "step": state.step})
    if curve.rate:
        loop.note(f"stage {stage.name}: the LR finder ({curve.kind}) chose {curve.rate:.3g}; see {name}")
    else:
        rate = stage.training.learning_rate
        loop.note(
            f"stage {stage.name}: the LR finder found no rate; learning_rate={rate:g} is used; see {name}"
        )
