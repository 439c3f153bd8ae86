"""Guides' spellings: sections, values, entries of lists and what goes with a key, wherever they stand."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from voxray.config.errors import InputError
from voxray.config.files import read_layers
from voxray.config.resolve import Resolved, resolve
from voxray.config.section import Section
from voxray.config.spellings import NOTHING, Aliases, Spelling, Spellings
from voxray.config.tree import Node


class Tracker(Section):
    enabled: bool = False
    project: str = "ours"
    tags: dict[str, str] = Field({})


class Step(Section):
    name: str = ""
    rate: float = 1.0
    precision: Literal["fp32", "fp16"] = "fp32"


class Training(Section):
    rate: float = 1.0
    precision: Literal["fp32", "fp16"] = "fp32"
    stop: bool = False
    patience: int = 10


class Whole(Section):
    training: Training = Training()
    tracker: Tracker = Tracker()
    steps: tuple[Step, ...] = ()


PRECISION = Spelling("training.precision", lambda value: {16: "fp16", 32: "fp32"}.get(value, value))
TABLE: Aliases = {
    "hparams": "training",
    "training.lr": "training.rate",
    "training.precision": PRECISION,
    "general.amp": Spelling("training.precision", lambda value: {True: "fp16"}.get(value, value)),
    "training.stop.patience": Spelling("training.patience", also={"training.stop": True}),
    "training.stop.enabled": "training.stop",
    "stop": "training.stop",
    "tracker": "tracker.enabled",
    "mlflow": "tracker",
    "mlflow.tags": Spelling("tracker.tags", also={"tracker.enabled": True}),
    "steps.*.training": "steps.*",
    "steps.*.lr": "steps.*.rate",
    "steps.*.precision": Spelling("steps.*.precision", lambda value: {16: "fp16"}.get(value, value)),
    "first.lr": "steps.0.lr",
    "second.rate": "steps.1.rate",
    "freeze": Spelling(instead="write a step of its own"),
    "rates": Spelling(
        "training.rate", lambda pair: pair[1], more=(Spelling("tracker.project", lambda pair: str(pair[0])),)
    ),
    "pause": Spelling(
        "training.stop",
        lambda value: value > 0,
        more=(Spelling("training.patience", lambda value: value or NOTHING),),
    ),
    "later": Spelling(
        "steps.1", within={"steps": [{}, {"name": "b", "rate": 4.0}]}, holds={"steps.1.name": "b"}
    ),
}


def build(tmp_path: Path, text: str, *overrides: str) -> Resolved[Whole]:
    (tmp_path / "e.yaml").write_text(text or "{}")
    layers, problems = read_layers(tmp_path / "e.yaml")
    return resolve(Whole, layers, overrides, aliases=TABLE, problems=problems)


def problems_of(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        build(tmp_path, text, *overrides)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("file", "override", "path", "value"),
    [
        ("hparams: {rate: 0.5}", "hparams.rate=0.5", "training.rate", 0.5),
        ("hparams: {lr: 0.5}", "hparams.lr=0.5", "training.rate", 0.5),
        ("training: {precision: 16}", "training.precision=16", "training.precision", "fp16"),
        ("training: {precision: fp16}", "training.precision=fp16", "training.precision", "fp16"),
        ("hparams: {precision: 16}", "hparams.precision=16", "training.precision", "fp16"),
        ("general: {amp: true}", "general.amp=true", "training.precision", "fp16"),
        ("tracker: true", "tracker=true", "tracker.enabled", True),
        ("tracker: {project: x}", "tracker.project=x", "tracker.project", "x"),
        ("mlflow: {project: x}", "mlflow.project=x", "tracker.project", "x"),
        ("mlflow: {tags: {version: 1.0}}", "mlflow.tags.version=1.0", "tracker.tags.version", "1.0"),
        ("stop: true", "stop=true", "training.stop", True),
        ("stop: {patience: 3}", "stop={patience: 3}", "training.patience", 3),
        ("training: {stop: {patience: 3}}", "training.stop.patience=3", "training.patience", 3),
    ],
)
def test_a_spelling_means_the_same_in_a_file_on_the_command_line_and_in_a_search(
    tmp_path: Path, file: str, override: str, path: str, value: object
) -> None:
    key, _, text = override.partition("=")
    searched = build(tmp_path, "").with_values({key: _plain(text)}, "trial 0")
    configs = [build(tmp_path, file).config, build(tmp_path, "", override).config, searched.config]
    for config in configs:
        found: object = config.model_dump()
        for part in path.split("."):
            assert isinstance(found, dict)
            found = found[part]
        assert (found, type(found)) == (value, type(value))


def _plain(text: str) -> object:
    from voxray.config.overrides import parse_override

    node = parse_override(f"x={text}")[1]
    return text if text == "1.0" else node.plain()


@pytest.mark.parametrize(
    ("override", "notes"),
    [
        ("hparams.lr=2", ["hparams.lr is training.rate here"]),
        ("training.precision=16", ["training.precision: 16 is 'fp16' here"]),
        ("general.amp=true", ["general.amp: true is training.precision: 'fp16' here"]),
        (
            "stop={patience: 3}",
            ["stop.patience is training.patience here", "stop.patience sets training.stop=true too"],
        ),
        ("training.rate=2", []),
        ("training.precision=fp16", []),
        ("training.stop=true", []),
    ],
)
def test_the_canonical_spelling_is_told(tmp_path: Path, override: str, notes: list[str]) -> None:
    told = build(tmp_path, "", override).notes
    assert told == [f"override: {override}", *(f"command line: {note}" for note in notes)]


def test_what_goes_with_a_key_is_set_where_nothing_else_sets_it(tmp_path: Path) -> None:
    assert build(tmp_path, "mlflow: {tags: {a: b}}").config.tracker.enabled
    off = "mlflow: {tags: {a: b}}\ntracker: {enabled: false}"
    assert not build(tmp_path, off).config.tracker.enabled
    assert not build(tmp_path, "mlflow: {tags: {a: b}}", "tracker=false").config.tracker.enabled
    assert not build(tmp_path, "", "stop={patience: 3, enabled: false}").config.training.stop


def test_a_key_may_say_several_whatever_is_set_there(tmp_path: Path) -> None:
    before = "training: {rate: 9.0, patience: 5}\ntracker: {project: old}\n"
    resolved = build(tmp_path, before, "rates=[2, 3]")
    assert (resolved.config.training.rate, resolved.config.tracker.project) == (3.0, "2")
    assert "command line: rates: [2, 3] is training.rate: 3 here" in resolved.notes
    assert "command line: rates: [2, 3] is tracker.project: '2' here" in resolved.notes
    assert resolved.spelled == {"training.rate": "rates", "tracker.project": "rates"}
    assert resolved.place("training.rate") == "training.rate (rates, command line)"
    later = resolved.with_values({"training.rate": 1.0}, "trial 0")
    assert later.place("training.rate") == "training.rate (trial 0)"
    contradiction = "rates: [2, 3]\ntraining: {rate: 9.0}\n"
    assert "rates: 3 contradicts 9.0" in problems_of(tmp_path, contradiction)


@pytest.mark.parametrize(("value", "stop", "patience"), [(3, True, 3), (0, False, 5)])
def test_a_value_may_say_nothing_at_one_of_a_keys_paths(
    tmp_path: Path, value: int, stop: bool, patience: int
) -> None:
    training = build(tmp_path, "training: {patience: 5}\n", f"pause={value}").config.training
    assert (training.stop, training.patience) == (stop, patience)


def test_what_a_files_key_takes_for_granted_is_set_where_nothing_is(tmp_path: Path) -> None:
    resolved = build(tmp_path, "later: {rate: 0.5}\n")
    assert resolved.config.steps == (Step(), Step(name="b", rate=0.5))
    assert resolved.sources["steps.1.name"] == "goes with later.rate"
    assert any("later.rate sets steps=" in note for note in resolved.notes)
    own = build(tmp_path, "steps: [{name: a}, {name: b}, {name: c}]\nlater: {rate: 0.5}\n").config.steps
    assert own == (Step(name="a"), Step(name="b", rate=0.5), Step(name="c"))
    assert build(tmp_path, "steps: [{}, {name: b}]\n", "later.rate=0.5").config.steps[1].rate == 0.5


@pytest.mark.parametrize(
    ("text", "override", "is_here"),
    [
        ("steps: [{}, {name: other}]\nlater: {rate: 0.5}\n", "", "is 'other'"),
        ("steps: [{}, {name: other}]\n", "later.rate=0.5", "is 'other'"),
        ("steps: [{}]\n", "later.rate=0.5", "is not there"),
        ("", "later.rate=0.5", "is not there"),  # a command line makes no list
    ],
)
def test_a_key_never_means_an_entry_of_another_name(
    tmp_path: Path, text: str, override: str, is_here: str
) -> None:
    problems = problems_of(tmp_path, text, *[override] * bool(override))
    assert f"later.rate is steps.1.rate where steps.1.name is 'b', and here it {is_here}" in problems


def test_an_entry_of_a_list_is_read_in_its_place(tmp_path: Path) -> None:
    text = "steps:\n- {training: {lr: 0.1}}\n- {name: b, training: {rate: 0.2}, precision: 16}\n- {name: c}\n"
    resolved = build(tmp_path, text, "steps.2.training.lr=0.3")
    assert [(s.name, s.rate, s.precision) for s in resolved.config.steps] == [
        ("", 0.1, "fp32"), ("b", 0.2, "fp16"), ("c", 0.3, "fp32")]  # fmt: skip
    assert resolved.sources["steps.1.rate"].endswith("e.yaml:3")
    assert "command line: steps.2.training.lr is steps.2.rate here" in resolved.notes


def test_a_guides_sections_become_a_list(tmp_path: Path) -> None:
    resolved = build(tmp_path, "first: {lr: 0.1}\nsecond: {rate: 0.2}\n")
    assert [step.rate for step in resolved.config.steps] == [0.1, 0.2]


def test_a_list_of_a_file_replaces_its_bases_though_part_of_it_is_spelled_otherwise(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("steps: [{name: a}, {name: b, rate: 9.0}]")
    resolved = build(tmp_path, "_base_: base.yaml\nsteps: [{training: {lr: 0.1}}]")
    assert resolved.config.steps == (Step(rate=0.1),)


def test_two_spellings_that_disagree_are_refused(tmp_path: Path) -> None:
    text = "hparams: {precision: 16}\ngeneral: {amp: true}\ntraining: {precision: 32}\n"
    assert "as both mean training.precision; keep one" in problems_of(tmp_path, text)
    assert build(tmp_path, text.replace("32", "16")).config.training.precision == "fp16"


def test_a_key_that_nothing_here_says_tells_what_to_write(tmp_path: Path) -> None:
    assert problems_of(tmp_path, "", "freeze=3") == "command line: freeze: write a step of its own"
    assert problems_of(tmp_path, "freeze: 3").endswith("e.yaml:1: freeze: write a step of its own")


def test_a_wrong_value_is_told_under_our_key(tmp_path: Path) -> None:
    assert "training.precision: '8' is not fp32 | fp16" in problems_of(tmp_path, "", "hparams.precision=8")
    assert "training.rat: 1 was given, but there is no such key; did you mean training.rate" in problems_of(
        tmp_path, "", "hparams.rat=1"
    )


def test_a_table_that_goes_round_in_a_circle_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="circle"):
        Spellings({"a": "b", "b": "a"}).translate(Node.of(1, "here"), ("a",))
