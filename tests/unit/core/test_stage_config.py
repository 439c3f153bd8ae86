"""A stage's keys, what they override, what is refused and where that is said."""

import json
from typing import Any

import jsonschema
import pytest
from pydantic import Field

from voxray.config.errors import InputError
from voxray.config.json_schema import experiment_schema
from voxray.config.resolve import Resolved, resolve
from voxray.config.schema import field_at, fields
from voxray.config.section import Section
from voxray.config.yaml import parse_yaml
from voxray.core.run_config import RunConfig, Stage
from voxray.core.spellings import COMMON


class ObjectiveConfig(Section):
    loss: str = "mse"
    weights: dict[str, float] = Field({})


class Config(RunConfig):
    task: str = "tests:Task"
    objective: ObjectiveConfig = ObjectiveConfig()


def experiment(text: str, *overrides: str) -> Resolved[Config]:
    return resolve(Config, [parse_yaml(text, "e.yaml")[0]], overrides, aliases=COMMON)


def stages_of(text: str, *overrides: str) -> list[Stage]:
    return experiment(text, *overrides).config.resolved_stages()


def problems_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        experiment(text, *overrides)
    return list(caught.value.problems)


TWO = """\
training: {batch_size: 16, learning_rate: 0.1, precision: bf16}
data: {filter: "view == 'PA'"}
objective: {loss: mse, weights: {a: 1.0, b: 2.0}}
stages:
  - {name: abnormal, epochs: 3}
  - {name: all, learning_rate: 0.01, data: {train_filter: "age > 3"}, objective: {weights: {b: 3.0}}}
"""


def test_a_stage_overrides_any_section_and_inherits_the_rest() -> None:
    first, second = stages_of(TWO)
    assert [stage.name for stage in (first, second)] == ["abnormal", "all"]
    assert (first.training.epochs, first.training.learning_rate, first.training.batch_size) == (3, 0.1, 16)
    assert (second.training.epochs, second.training.learning_rate) == (10, 0.01)
    assert [stage.training.precision for stage in (first, second)] == ["bf16", "bf16"]
    assert [stage.config.data.filter for stage in (first, second)] == ["view == 'PA'"] * 2
    assert [stage.config.data.train_filter for stage in (first, second)] == ["", "age > 3"]
    configs = [stage.config.model_dump()["objective"] for stage in (first, second)]
    assert configs == [
        {"loss": "mse", "weights": {"a": 1.0, "b": 2.0}},
        {"loss": "mse", "weights": {"a": 1.0, "b": 3.0}},
    ]
    assert second.config.stages == ()


def test_without_stages_the_run_is_one() -> None:
    (only,) = stages_of("training: {epochs: 2}")
    assert (only.index, only.name, only.training.epochs) == (0, "main", 2)


@pytest.mark.parametrize(
    "override",
    ["stages.1.learning_rate=0.5", "stages.1.training.learning_rate=0.5", "stages.1.lr=0.5",
     "stages.1.training.lr=0.5", "stages.1.optimizer={lr: 0.5}"],
)  # fmt: skip
def test_every_spelling_of_a_stages_key_is_the_flat_one(override: str) -> None:
    resolved = experiment(TWO, override)
    assert resolved.config.resolved_stages()[1].training.learning_rate == 0.5
    assert resolved.sources["stages.1.learning_rate"] == "command line"
    if "optimizer" not in override:
        searched = experiment(TWO).with_values({override.partition("=")[0]: 0.5}, "trial 1")
        assert searched.config.resolved_stages()[1].training.learning_rate == 0.5


def test_a_stage_says_only_what_was_set_also_after_a_round_trip() -> None:
    text = """
training: {parameters: {"head*": {weight_decay: 0.0}}}
stages: [{clip_grad_norm: null, parameters: {"head*": {learning_rate: 0.5}}}, {}]
"""
    config = experiment(text).config
    dumped = json.loads(config.model_dump_json())
    assert dumped["stages"] == [
        {"clip_grad_norm": None, "parameters": {"head*": {"learning_rate": 0.5}}}, {}]  # fmt: skip
    again = Config.model_validate(dumped)
    for each in (config, again):
        first, second = each.resolved_stages()
        head = first.training.parameters["head*"]
        assert (head.learning_rate, head.weight_decay) == (0.5, 0.0)
        assert (first.training.clip_grad_norm, second.training.clip_grad_norm) == (None, 1.0)
    assert again == config
    assert again.resolved_stages() == config.resolved_stages()


def test_a_later_stage_goes_on_unless_it_says_where_it_starts() -> None:
    text = "training: {start_from: runs/x}\nstages: [{}, {}, {start_from: stage0/best}, {start_from: last}]"
    starts = [stage.training.start_from for stage in stages_of(text)]
    assert starts == ["runs/x", "", "stage0/best", "last"]


@pytest.mark.parametrize(
    ("values", "sizes"),
    [
        ("training: {batch_size: 12}", [12]),
        ("training: {batch_size_per_worker: 4}", [8]),
        ("training: {batch_size_per_worker: 4, batch_size: 8}", [8]),
        ("training: {batch_size_per_worker: 4}\nstages: [{}, {batch_size: 6}]", [8, 6]),
        ("training: {batch_size: 12}\nstages: [{}, {batch_size_per_worker: 5}]", [12, 10]),
    ],
)
def test_batch_size_is_over_all_workers_whichever_spelling_was_given(values: str, sizes: list[int]) -> None:
    resolved = experiment(values, "scale.num_workers=2")
    assert [stage.training.batch_size for stage in resolved.config.resolved_stages()] == sizes
    again = Config.model_validate_json(resolved.config.model_dump_json())
    assert [stage.training.batch_size for stage in again.resolved_stages()] == sizes


def test_an_elastic_run_counts_the_most_workers() -> None:
    (stage,) = stages_of("training: {batch_size_per_worker: 4}", "scale.num_workers=[1, 3]")
    assert stage.training.batch_size == 12


REFUSED: list[tuple[str, str, str]] = [
    ("training: {batch_size: 9, batch_size_per_worker: 4}", "e.yaml:1: training.batch_size: 9 contradicts",
     "which is 4 with scale.num_workers=1; keep one of the two"),
    ("stages:\n- {}\n- name: b\n  batch_size: 9\n  batch_size_per_worker: 4", "e.yaml:4: stages.1.batch_size",
     "stage 'b': 9 contradicts"),
    ("stages: [{name: a}, {name: a}]", "e.yaml:1: stages.1.name", "'a' is the name of two stages"),
    ("stages: [{name: stage1}, {}]", "e.yaml:1: stages.1", "'stage1' is the name of two stages"),
    ("stages: [{name: best}]", "e.yaml:1: stages.0.name", "a stage cannot be called 'best'"),
    ("stages: [{name: a/b}]", "e.yaml:1: stages.0.name", "'a/b' is not str matching"),
    ("stages: [{start_from: best}]", "e.yaml:1: stages.0.start_from", "no stage comes before 'stage0'"),
    ("training: {start_from: last}", "e.yaml:1: training.start_from", "no stage comes before 'main'"),
    ("stages: [{}, {name: b,\n   start_from: b/last}]", "e.yaml:2: stages.1.start_from", "start from itself"),
    ("stages:\n- {}\n- {learning_rate: 0}", "e.yaml:3: stages.1.learning_rate", "0 is not float > 0"),
    ("stages:\n- {}\n- {learning_rate: null}", "e.yaml:3: stages.1.learning_rate", "null is not float > 0"),
    ("stages: [{lerning_rate: 1}]", "e.yaml:1: stages.0.lerning_rate",
     "did you mean stages.0.learning_rate (float > 0)?"),
    ("stages: [{seed: 1}]", "e.yaml:1: stages.0.seed", "did you mean"),
    ("stages: [{scale: {num_workers: 2}}]", "e.yaml:1: stages.0.scale", "no such key"),
    ("stages: [{data: {path: x}}]", "e.yaml:1: stages.0.data.path", "no such key"),
    ("stages:\n- {}\n- data: {weights: age}", "e.yaml:3: stages.1.data", "weights work with sampling"),
    ("data: {sampling: with_replacement}\nstages: [{steps: 3}, {epochs: 2}]", "e.yaml:2: stages.1",
     "stage 'stage1' needs training.steps"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "sentence"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_told_at_its_line(text: str, place: str, sentence: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(place), problem
    assert sentence in problem


def test_names_and_globs_work_in_a_stage() -> None:
    text = "stages: [{parameters: {'backbone.*': {freeze: true}}, trainable: ['head.*']}]"
    (stage,) = stages_of(text)
    assert stage.training.parameters["backbone.*"].freeze
    assert stage.training.trainable == ("head.*",)


def test_the_schema_knows_every_stage_key() -> None:
    known = {path for path in fields(Config) if path.startswith("stages.*.")}
    of_training = {path.partition(".")[2] for path in fields(Config) if path.startswith("training.")}
    assert {path.removeprefix("stages.*.") for path in known} >= of_training - {"seed", "parts", "parts.*"}
    assert "stages.*.objective.loss" in known
    assert field_at(Config, "stages.3.patience").hint() == "stages.3.patience (int ≥ 1)"


def test_an_editor_completes_and_checks_a_stage() -> None:
    schema = experiment_schema(Config)

    def check(stage: dict[str, Any]) -> None:
        jsonschema.validate({"stages": [{"name": "a"}, stage]}, schema)

    check({"learning_rate": 1e-4, "data": {"train_filter": "x"}, "objective": {"loss": "mse"}})
    check({"clip_grad_norm": None, "parameters": {"a*": {"freeze": True}}})
    for wrong in ({"learning_rate": "1"}, {"learning_rate": None}, {"lr_rate": 1}, {"data": {"path": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            check(wrong)
