"""A trained model, read back: weights, task, rows. Needs no Ray, and no dataset until rows are read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from voxray.config.errors import InputError, RunError
from voxray.config.overrides import parse_override
from voxray.config.resolve import resolve
from voxray.config.tree import Node
from voxray.core.registry import config_class, task_class
from voxray.core.run_config import RunConfig, Stage
from voxray.core.task import Task
from voxray.data.dataset import dataset_path
from voxray.data.local import LocalStream
from voxray.data.manifest import load_manifest
from voxray.data.source import open_source
from voxray.data.store import Store
from voxray.train.at_hand import at_hand
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.files import MANIFEST, read_manifest, verify
from voxray.train.run_folder import RunFolder
from voxray.train.trained.dataset_facts import DatasetFacts, read_facts

WEIGHT_FILES = (".safetensors", ".pt", ".pth")
NOT_PRETRAINED = {"pretrained": False, "pretrained_file": ""}  # a task's keys of `model`


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode on `device`, with the task that it was trained for.

    `stage` is the one that the weights come from: the task, and all that is computed with it, goes by that
    stage's values. `run` is the run's folder where the run itself (its best, with its own values) was asked
    for, else None.
    """

    model: nn.Module
    task: Task
    config: RunConfig
    stage: Stage
    facts: DatasetFacts
    device: torch.device
    checkpoint: Path
    is_averaged: bool  # the weights are the moving average that the run kept (training.ema_decay)
    run: Path | None

    def rows(self, split: str, data: str | Path | None = None) -> LocalStream:
        """Return the source of a split's rows, of the run's own dataset or of another prepared one.

        Raises InputError where there is no dataset, where its columns do not fit the model, or where the
        split has no rows.
        """
        location = str(data) if data is not None else self._own_dataset()
        config = self.stage.config.data
        # Ray's transport is for training on many nodes: a process of its own maps or copies the shards.
        transport = "local" if Store.of(location).is_local and config.transport != "cache" else "cache"
        values = config.model_copy(update={"transport": transport})
        source = open_source(location, values, stages=self.task.read_stages())
        self.facts.refuse_others(location, source.manifest.schema)
        if source.num_rows(split) == 0:
            raise InputError(
                f"{location} has no rows in split '{split}'; it has {', '.join(source.manifest.splits)}"
            )
        return source

    def _own_dataset(self) -> str:
        """Return where the run's dataset lies: where it lay, else where its config says."""
        for find in (lambda: self.facts.location, lambda: dataset_path(self.config)):
            try:
                location = find()
                load_manifest(location)
            except InputError:
                continue
            return location
        raise InputError(f"the run's dataset {self.facts.location} is gone; name another one with --data")


def load(
    reference: str | Path, device: str | torch.device | None = None, overrides: Sequence[str] = ()
) -> Trained:
    """Load the model of a RUN (its best checkpoint, or its last where no best was kept), of RUN/best,
    RUN/last, a checkpoint's folder, or a folder that `voxray export` wrote.

    `device` is a GPU by default where there is one. Where the run kept averaged weights, they are taken.
    `overrides` are `key=value` of sections that training does not read (`RunConfig.AFTER_TRAINING`). Raises
    InputError when the folder holds no model, for a config that this voxray does not know and an override of
    anything else, RunError when a file is damaged.
    """
    folder, run = find(Path(reference))
    weights = checkpoint.load_weights(folder)
    manifest = read_manifest(folder)
    stage_index = _read_stage(folder, manifest)
    config = _overridden(_read_config(folder), overrides)
    stage = config.resolved_stages()[stage_index]
    facts = _facts_of(folder, config)
    task = task_class(config.task)(stage.config, facts.statistics, facts.schema)
    where = torch.device(device) if device is not None else _default_device()
    model = _without_download(task).build_model()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"the weights of {folder} do not fit the model that its config describes; "
            f"was the task's code changed since? ({' '.join(str(error).split())})"
        ) from error
    is_averaged = "ema.safetensors" in manifest["files"]
    own = None if overrides else run
    return Trained(model.to(where).eval(), task, config, stage, facts, where, folder, is_averaged, own)


def find(reference: Path) -> tuple[Path, Path | None]:
    """Return the folder of the weights that `reference` names, and the run where its best ones are meant.

    It may be a URL, of which a local copy is made. Raises InputError when there is none.
    """
    reference = at_hand(reference)
    if (reference / MANIFEST).is_file():
        return reference, None
    pointer = reference.name if reference.name in ("best", "last") and not reference.exists() else ""
    if reference.suffix in WEIGHT_FILES:
        raise InputError(
            f"{reference} holds weights alone, without the config that builds the model; name a run, "
            "a checkpoint's folder, or a folder that `voxray export RUN OUT` wrote"
        )
    run = RunFolder(reference.parent if pointer else reference)
    run.config()
    best = None if pointer == "last" else checkpoint.best(run.checkpoints)
    chosen = best or (checkpoint.last(run.checkpoints) if pointer != "best" else None)
    if chosen is None:
        kept = "no best checkpoint" if pointer == "best" else "no checkpoint"
        raise InputError(f"{run.path} holds {kept}; train it first with `voxray train`")
    return chosen, None if pointer == "last" else run.path


def _read_stage(folder: Path, manifest: dict[str, Any]) -> int:
    """Return the index of the stage that a folder's weights come from; an export's manifest says it.

    Raises RunError where one of the small files is not what the manifest says (the weights' reader checks
    those).
    """
    small = {n: entry for n, entry in manifest["files"].items() if not n.endswith(".safetensors")}
    wrong = verify(folder, small)
    if wrong:
        raise RunError(f"{folder} cannot be used: {wrong}")
    if "stage" in manifest:
        return int(manifest["stage"])
    return int(torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["stage"])


def _read_config(folder: Path) -> RunConfig:
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text())
        return config_class(values["task"]).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{file} does not fit this voxray: {place}: {first['msg']}; use the version that trained it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no config that voxray saved ({error}); restore it") from error


def _overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the config with other values in the sections that training does not read."""
    if not overrides:
        return config
    free = config.AFTER_TRAINING
    wrong = [text for text in overrides if parse_override(text)[0][0] not in free]
    if wrong:
        may = f"only {', '.join(free)} may change" if free else "nothing may change"
        raise InputError(*(f"{text}: the model was trained with another value; {may} now" for text in wrong))
    values = Node.of(config.model_dump(mode="json"), "the trained run")
    return resolve(type(config), [values], overrides).config


def _facts_of(folder: Path, config: RunConfig) -> DatasetFacts:
    """Return what was noted of the dataset, in an export's folder or beside a run; else what it says now."""
    for place in (folder, folder.parent.parent):
        facts = read_facts(place)
        if facts is not None:
            return facts
    dataset = dataset_path(config)
    return DatasetFacts.of(dataset, load_manifest(dataset))


def _without_download(task: Task) -> Task:
    """Return the task with `model.pretrained` off, as the weights are at hand and the hub, or the file that
    they came from, may not be.
    """
    model: Any = getattr(task.config, "model", None)
    off = {name: value for name, value in NOT_PRETRAINED.items() if getattr(model, name, value) != value}
    if not off:
        return task
    config = task.config.model_copy(update={"model": model.model_copy(update=off)})
    return type(task)(config, task.statistics, task.dataset_schema)


def _default_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
