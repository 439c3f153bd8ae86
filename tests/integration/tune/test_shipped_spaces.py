"""Every file under search_spaces/: its configs validate, and each key that it varies changes what is trained.

A few updates are made on random rows of the task's schema. What is looked at is inside the model and the
optimiser: the modules, all weights after training, and the options of the parameter groups. The same config
gives the same weights, bit for bit, so a key whose values leave all of that alone does nothing.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from random_rows import OFFLINE, STATISTICS, random_rows, resolved, task_schema
from voxray.config.resolve import Resolved
from voxray.core.registry import task_class
from voxray.core.run_config import RunConfig
from voxray.data.source import open_source
from voxray.testing.datasets import write_dataset
from voxray.train.control import Control
from voxray.train.fit_context import Fit
from voxray.train.loop import run_stages
from voxray.train.run_folder import RunFolder
from voxray.tune.plan import Plan, load_plan
from voxray.tune.study.folder import open_study

ROOT = Path(__file__).resolve().parents[3]
SPACES = sorted((ROOT / "search_spaces").rglob("*.yaml"))
NUM_SAMPLES = 20
FREE_SIZE = 32  # stands for a size that only raw files tell, e.g. an image's side
NUM_ROWS = 70  # leaves no batch of one row, which BatchNorm refuses
NUM_VAL = {"fmri_clip": 300, "mindeye": 300}  # a whole gallery
UPDATES = 3  # of each stage: momentum, warm-ups and schedules show after the first
# Keys that decide the cost, with a cheap value: the effect of the others is looked at with it.
NO_FINDER = {"training.lr_finder": "off"}  # it makes a hundred updates
CHEAP: dict[str, dict[str, Any]] = {
    # A bank of 8 is full after one batch, so that what becomes of a full one shows.
    "cxr_memory": {"model.backbone": "test_efficientnet", "memory.bank_size": 8, **NO_FINDER},
    "fmri_clip": {"data.augmentation": True},
    "hyperspectral": {"model.name": "mae_tiny"},
    "mindeye": {"model.voxel2clip.hidden_dim": 32, "model.prior.depth": 1},
    "brain_text": {"model.llm.dtype": "float32", "training.compile": "off", "training.precision": "fp32"},
}
LENGTHS = ("epochs", "steps")  # keys of a stage that say how long it is
FEW = {"data.limit_samples": 6, "training.steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("spaces")


def plan_of(file: Path, folder: Path, task: str) -> Plan:
    fixed = [f"storage.path={folder}", f"data.path={dataset(task, folder)}"]
    return load_plan(str(file), [*OFFLINE[task], *fixed])


@cache
def dataset(task_name: str, folder: Path) -> Path:
    """A dataset of random rows of the task's shape."""
    schema = task_schema(task_name, FREE_SIZE)
    splits = {
        "train": random_rows(schema, NUM_ROWS, 0),
        "val": random_rows(schema, NUM_VAL.get(task_name, 7), 1),
    }
    return write_dataset(folder / f"{task_name}-data", schema, splits, NUM_ROWS)


def samples(plan: Plan) -> list[dict[str, Any]]:
    """What the space's own sampler suggests first."""
    with open_study(plan) as ledger:
        drawn = [ledger.ask(index).values for index in range(NUM_SAMPLES)]
        ledger.cut_short()
    return drawn


class Trained:
    """What training a few updates made of a config."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        data = config.data.path
        made = task_class(config.task)(config)
        task = type(made)(config, STATISTICS.get(config.task), resolved(made.schema(), FREE_SIZE))
        source = open_source(data, config.data, stages=task.read_stages())
        reports: list[dict[str, float]] = []
        loop = Fit(task, source, config, RunFolder(folder), reports.append, torch.device("cpu"), Control())
        run_stages(loop)
        state = loop.state
        assert state is not None
        assert state.step > 0
        self.reported = set(reports[-1])
        digest = hashlib.sha256()
        for kept in (state.model, state.evaluated):
            for name, tensor in kept.state_dict().items():
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
        self.weights = digest.hexdigest()
        self.modules = str(state.model)
        made_groups = state.optimizer.param_groups if state.optimizer else []  # a closed form has none
        groups = [{k: v for k, v in group.items() if k != "params"} for group in made_groups]
        self.optimizer = f"{type(state.optimizer).__name__} {groups}"

    def differs(self, other: "Trained") -> bool:
        return (self.weights, self.modules, self.optimizer) != (other.weights, other.modules, other.optimizer)


class Trainer:
    """Trains configs that differ in little from one another, each once."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self._folder, self.cheap = plan, folder, CHEAP[plan.base.config.task]
        self._done: dict[str, Trained] = {}

    def config(self, values: Mapping[str, Any], key: str = "") -> Resolved[RunConfig]:
        """A trial's config, made cheap but for the key that is looked at."""
        cheap = {path: value for path, value in self.cheap.items() if path != key} | unsaved(self.plan)
        if key in self.cheap:
            cheap |= FEW
        elif key.rpartition(".")[2] in LENGTHS:
            cheap |= {"data.limit_samples": FEW["data.limit_samples"]}
        else:
            cheap |= {"training.steps": UPDATES}
        return self.plan.trial(0, {**values, **cheap})

    def train(self, values: Mapping[str, Any], key: str = "") -> Trained:
        config = self.config(values, key).config
        name = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
        if name not in self._done:
            self._done[name] = Trained(config, _made(self._folder / name))
        return self._done[name]


def unsaved(plan: Plan) -> dict[str, Any]:
    """Nothing is saved here, so a stage goes on from the one before."""
    stages = plan.base.config.resolved_stages()
    return {f"stages.{s.entry}.start_from": "" for s in stages if s.index and s.training.start_from}


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("file", SPACES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_each_key_changes_what_is_trained(file, folder):
    plan = plan_of(file, folder, file.parent.name)
    space = plan.space.config
    assert space.description, "a space says what it looks for"
    assert space.hypothesis
    assert space.expected
    assert keys_without_effect(plan, folder / f"{file.parent.name}-{file.stem}") == []


def test_a_key_that_does_nothing_is_found(folder):
    file = folder / "idle.yaml"
    file.write_text(f"""
experiment: {ROOT / "experiments/cxr_memory/dev_fast.yaml"}
objective: {{metric: val/auroc, mode: max}}
search:
  trials: 20
  space:
    training.momentum: {{uniform: [0.5, 0.9]}} # adamw has none
    model.dropout: {{uniform: [0.1, 0.5]}}
""")
    assert keys_without_effect(plan_of(file, folder, "cxr_memory"), folder / "idle") == ["training.momentum"]


def keys_without_effect(plan: Plan, folder: Path) -> list[str]:
    """Check that what the space samples validates and trains; return its keys that change nothing."""
    space, trainer = plan.space.config, Trainer(plan, _made(folder))
    base: dict[str, Any] = {}
    if space.ablate is not None:
        varied, base = arms_of(plan), dict(space.ablate.baseline)
    else:
        drawn = samples(plan)
        configs = [plan.trial(index, values).config for index, values in enumerate(drawn)]
        assert len({config.model_dump_json() for config in configs}) == NUM_SAMPLES, "no two alike"
        varied, base = pairs(drawn, list(space.search.space)), drawn[0]
        # Two as they were drawn, on fewer rows.
        fixed = {path: value for path, value in trainer.cheap.items() if path not in space.search.space}
        fixed |= {**unsaved(plan), **FEW, **NO_FINDER}
        one, other = (Trained(plan.trial(i, {**drawn[i], **fixed}).config, folder) for i in (0, 1))
        assert one.differs(other)
    once, again = (Trained(trainer.config(base).config, folder) for _ in range(2))
    assert not once.differs(again), "training is not deterministic, so that nothing can be said"
    wanted = {objective.metric for objective in space.objectives} - {"model/params"}
    assert wanted <= once.reported
    return [
        name
        for name, (key, first, second) in varied.items()
        if not trainer.train(first, key).differs(trainer.train(second, key))
    ]


def pairs(
    drawn: list[dict[str, Any]], keys: list[str]
) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each key (its name, values, the same values but for that key): of what was drawn, far apart."""
    found = {}
    for key in keys:
        having = [values for values in drawn if key in values]
        values = [each[key] for each in having]
        if len({repr(value) for value in values}) < 2:
            assert len(having) == len(drawn), f"{key} is never drawn with two values in {NUM_SAMPLES} trials"
            continue  # fixed
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            low, high = min(values), max(values)
        else:
            low = values[0]
            high = next(value for value in values if value != low)
        first = next(each for each in having if each[key] == low)
        found[key] = (key, first, {**first, key: high})
    return found


def arms_of(plan: Plan) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each arm of an ablation (its key, the baseline's values, the arm's)."""
    ablate = plan.space.config.ablate
    arms = dict(ablate.arms)
    arms |= {f"without {path}": {path: value} for path, value in ablate.off.items()}
    arms |= {f"{path}={value}": {path: value} for path, values in ablate.grid.items() for value in values}
    base = dict(ablate.baseline)
    return {
        name: (next(iter(values)), base, {**base, **values})
        for name, values in arms.items()
        if plan.trial(0, {**base, **values}).config != plan.trial(0, base).config
    }
