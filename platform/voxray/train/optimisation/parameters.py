"""Which parameters a stage trains, by globs of their names, and what freezing means for BatchNorm.

A glob is matched against full names (`backbone.layer4.0.conv1.weight`); `*` crosses dots, and the name of a
module stands for all that is in it (`backbone` = `backbone.*`).
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from voxray.config.errors import InputError
from voxray.train.config import ParameterOptions, TrainingConfig

_BUILT_FROZEN = "_frozen_when_built"


def choose_trainable(model: nn.Module, training: TrainingConfig) -> None:
    """Set `requires_grad` of every parameter: on where a glob of `training.trainable` matches and no glob of
    `training.parameters` freezes it (the last one that says so wins).

    What `build_model` itself froze (a pretrained tower) stays frozen, however often this is called. Raises
    InputError for a glob that matches no parameter, with the nearest names, and when nothing is left to
    train by gradients.
    """
    names = [name for name, _ in model.named_parameters()]
    problems = [
        problem
        for place, globs in (
            ("training.trainable", training.trainable),
            ("training.parameters", training.parameters),
        )
        for glob in globs
        if (problem := _no_match(glob, place, model, names))
    ]
    if problems:
        raise InputError(*problems)
    built_frozen = _frozen_when_built(model)
    for name, parameter in model.named_parameters():
        is_chosen = any(matches(name, glob) for glob in training.trainable)
        is_frozen = name in built_frozen or options_of(name, training.parameters).freeze
        parameter.requires_grad_(is_chosen and not is_frozen)
    if training.stepper == "gradient" and not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            f"nothing is left to train: training.trainable={list(training.trainable)}, "
            f"frozen by training.parameters: {[g for g, o in training.parameters.items() if o.freeze]}, "
            f"frozen by the model itself: {len(built_frozen)} of {len(names)} parameters; choose other globs"
        )


def train_mode(model: nn.Module) -> None:
    """Put the model in training mode, but layers with running statistics in evaluation mode where they are
    frozen, so that the statistics stay what the frozen weights were trained with.

    Such a layer is frozen when all its parameters are. One without parameters follows the nearest module
    around it that has any: it is frozen when all of those are.
    """
    model.train()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if getattr(module, "running_mean", None) is not None and _is_frozen(name, modules):
            module.eval()


def matches(name: str, glob: str) -> bool:
    """Return whether a parameter's full name matches a glob, or lies in the module that the glob names."""
    return fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}.*")


def options_of(name: str, parameters: dict[str, ParameterOptions]) -> ParameterOptions:
    """Return the options of one parameter: of each key the value of the last matching glob that sets it."""
    merged: dict[str, object] = {}
    for glob, options in parameters.items():
        if matches(name, glob):
            merged |= {key: value for key, value in options if value is not None}
    return ParameterOptions.model_validate(merged)


def _frozen_when_built(model: nn.Module) -> frozenset[str]:
    """Return the names that had no gradient when this model was first seen; the model remembers them."""
    if not hasattr(model, _BUILT_FROZEN):
        frozen = frozenset(
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        )
        setattr(model, _BUILT_FROZEN, frozen)
    return getattr(model, _BUILT_FROZEN)


def _is_frozen(name: str, modules: dict[str, nn.Module]) -> bool:
    while True:
        parameters = list(modules[name].parameters())
        if parameters or not name:
            return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        name = name.rpartition(".")[0]


def _no_match(glob: str, place: str, model: nn.Module, names: Iterable[str]) -> str | None:
    """Return the sentence about a glob that matches no parameter, with the names that come nearest."""
    if any(matches(name, glob) for name in names):
        return None
    modules = [
        name for name, module in model.named_modules() if name and any(True for _ in module.parameters())
    ]
    wanted = glob.removesuffix(".*").removesuffix("*")
    near = difflib.get_close_matches(wanted, [*modules, *names], n=3, cutoff=0.5)
    near = near or [name for name in modules if "." not in name][:8] or list(names)[:8]
    return f"{place}: '{glob}' matches no parameter of the model; there is {', '.join(near) or 'none at all'}"
