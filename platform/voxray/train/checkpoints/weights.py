"""Weights to start from: what `training.start_from` may name, read safely and put into a model.

A state that DDP or torch.compile prefixed (`module.`, `_orig_mod.`) loads; nothing that needs pickle does.
"""

import difflib
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from voxray.config.errors import InputError, RunError
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.files import MANIFEST, Tensors

SUFFIXES = (".safetensors", ".pt", ".pth")
NESTED_IN = ("model_state_dict", "state_dict", "model")  # where other programs keep a model's state
WHICH = ("best", "last")
NUM_NAMES_TOLD = 6


@dataclass(frozen=True)
class WeightsAt:
    """Where weights are: a checkpoint's folder or a file, and what to call it to the user."""

    path: Path
    text: str


@dataclass(frozen=True)
class Loaded:
    """The model's names that the weights lack, and the weights' names that the model lacks."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def resolve(
    reference: str, runs_root: Path, this_run_checkpoints: Path, earlier_stages: Sequence[str]
) -> WeightsAt:
    """Find what `training.start_from` names.

    In a later stage `best`, `last`, `<stage>/best` and `<stage>/last` are checkpoints of this run;
    `earlier_stages` are the stages' names in their order. Anything else is a path, as given or below
    `runs_root`: a run (its best checkpoint, else its newest), RUN/best, RUN/last, a checkpoint's folder, or a
    .safetensors, .pt or .pth file. Raises InputError when it is none of them, RunError when an earlier stage
    kept no such checkpoint.
    """
    stage, _, which = reference.rpartition("/")
    if reference in WHICH and not earlier_stages:
        raise InputError(
            f"training.start_from={reference} means the stage before, and the first stage has none; "
            "name a run or a file"
        )
    if which in WHICH and (not stage or stage in earlier_stages):
        return _of_stage(stage or earlier_stages[-1], which, this_run_checkpoints, earlier_stages)
    for path in (Path(reference).expanduser(), runs_root / reference):
        found = _at_path(path)
        if found:
            return found
    raise InputError(
        f"training.start_from={reference} is no earlier stage, run, checkpoint or weights file"
        + _nearest(reference, runs_root, earlier_stages)
    )


def read_weights(at: WeightsAt) -> Tensors:
    """Return the weights under their names, on the CPU.

    Of a checkpoint these are the ones that were evaluated: the moving average, where there is one. Raises
    InputError when a file cannot be read without running code or holds no weights, RunError when a checkpoint
    is damaged.
    """
    if at.path.is_dir():
        return checkpoint.load_weights(at.path)
    if at.path.suffix == ".safetensors":
        try:
            return load_file(at.path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{at.path} is no whole safetensors file: {error}") from error
    return _state_dict_in(_read_plain(at.path), at.path)


def load_into(model: nn.Module, weights: Tensors, tell: Callable[[str], None]) -> Loaded:
    """Put weights into a model by name.

    Names that only one of them has are told and left alone (a new head). Raises InputError when a shape
    differs or when no name matches.
    """
    names = list(model.state_dict())
    own = {_plain_name(name): name for name in names} | {name: name for name in names}
    place = {name: own.get(name, own.get(_plain_name(name))) for name in weights}
    matching = {there: weights[name] for name, there in place.items() if there}
    if not matching:
        raise InputError(
            f"no weight fits the model: they are named {_few(weights)}; the model's are {_few(names)}"
        )
    _refuse_other_shapes(model.state_dict(), matching)
    tied = _tied_to(model, matching)
    model.load_state_dict(matching, strict=False)
    loaded = Loaded(
        tuple(name for name in names if name not in matching and name not in tied),
        tuple(name for name, there in place.items() if not there),
    )
    if loaded.missing:
        tell(f"not among the weights, so new in the model: {_few(loaded.missing)}")
    if loaded.unexpected:
        tell(f"among the weights but not in the model, so left out: {_few(loaded.unexpected)}")
    return loaded


def _of_stage(stage: str, which: str, checkpoints: Path, earlier_stages: Sequence[str]) -> WeightsAt:
    find = checkpoint.best if which == "best" else checkpoint.last
    found = find(checkpoints, earlier_stages.index(stage))
    if found is None:
        mend = (
            "set checkpoints.save_best=true"
            if which == "best"
            else f"use {stage}/best or leave start_from out"
        )
        raise RunError(f"stage '{stage}' left no {which} checkpoint in {checkpoints}; {mend}")
    return WeightsAt(found, f"{found.name}, the {which} of stage '{stage}'")


def _at_path(path: Path) -> WeightsAt | None:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path} cannot be started from: it is no {', '.join(SUFFIXES)} file")
        return WeightsAt(path, str(path))
    if (path / MANIFEST).is_file():
        return WeightsAt(path, str(path))
    if path.name in WHICH and not path.exists():
        return _of_run(path.parent, path.name) if _is_run(path.parent) else None
    if _is_run(path):
        return _of_run(path, "")
    if path.is_dir():
        raise InputError(
            f"{path} is neither a run nor a checkpoint; name a run, e.g. one of `voxray ls runs`"
        )
    return None


def _is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def _of_run(run: Path, which: str) -> WeightsAt:
    """Return a run's best or last checkpoint; without `which` its best, or else its newest."""
    folder = run / "checkpoints"
    found = None if which == "last" else checkpoint.best(folder)
    if found:
        return WeightsAt(found, f"{found.name}, the best of {run}")
    found = None if which == "best" else checkpoint.last(folder)
    if found:
        return WeightsAt(found, f"{found.name}, the newest of {run}")
    raise InputError(f"{run} holds no {'best ' if which == 'best' else ''}checkpoint to start from")


def _nearest(reference: str, runs_root: Path, earlier_stages: Sequence[str]) -> str:
    """Return what the user may have meant, as the end of a sentence."""
    runs = [str(file.parent.relative_to(runs_root)) for file in runs_root.glob("*/*/config.json")]
    known = [f"{stage}/{which}" for stage in earlier_stages for which in WHICH] + runs
    near = difflib.get_close_matches(reference, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _read_plain(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError) as error:
        raise InputError(
            f"{path} holds more than tensors and plain values, and reading that could run code; "
            "save its state_dict alone (torch.save(model.state_dict(), ...) or safetensors)"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as saved weights: {reason}") from error


def _state_dict_in(content: Any, path: Path) -> Tensors:
    """Return the map of names to tensors, which may be nested in what was saved."""
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a map of names to tensors")
    for candidate in (content, *(content[name] for name in NESTED_IN if name in content)):
        if _is_state_dict(candidate):
            return dict(candidate)
    raise InputError(
        f"{path} holds no weights: none of {', '.join(NESTED_IN)} among its keys is a map of names to "
        f"tensors; its keys are {_few(map(str, content))}"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in value.items())
    )


def _plain_name(name: str) -> str:
    """Return a parameter's name without what DDP and torch.compile put in front of it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod").removeprefix("module.")


def _refuse_other_shapes(own: Tensors, matching: Tensors) -> None:
    different = [
        f"{name} is {list(value.shape)} in the weights and {list(own[name].shape)} in the model"
        for name, value in matching.items()
        if value.shape != own[name].shape
    ]
    if different:
        raise InputError(*different)


def _tied_to(model: nn.Module, matching: Tensors) -> set[str]:
    """Return the model's names whose memory is loaded under another name."""
    own = model.state_dict()
    places = {own[name].data_ptr() for name in matching if own[name].numel()}
    return {name for name, value in own.items() if value.numel() and value.data_ptr() in places}


def _few(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - NUM_NAMES_TOLD} more" if len(every) > NUM_NAMES_TOLD else ""
    return ", ".join(every[:NUM_NAMES_TOLD]) + more
