"""Files, overrides and guides' spellings become one typed config; everything wrong is told at once."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from voxray.config.errors import InputError
from voxray.config.files import read_layers
from voxray.config.resolve import Resolved, resolve
from voxray.config.schema import field_at
from voxray.config.section import Section


class Adam(Section):
    name: Literal["adam"] = "adam"
    beta: float = 0.9


class Sgd(Section):
    name: Literal["sgd"]
    momentum: float = Field(0.0, ge=0, lt=1)


class Layer(Section):
    width: int = Field(8, ge=1)


class Training(Section):
    batch_size: int = Field(32, ge=1, description="rows")
    learning_rate: float = 1e-3
    amp: bool = False
    clip: float | None = None
    mode: Literal["min", "max"] = "min"
    optimizer: Annotated[Adam | Sgd, Field(discriminator="name")] = Adam()


class Model(Section):
    name: str = "net"
    layers: tuple[Layer, ...] = ()
    sizes: tuple[int, ...] = (256, 128)
    per_group: dict[str, Layer] = Field({})
    workers: float | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _net_has_no_layers(self) -> "Model":
        if self.name == "linear" and self.layers:
            raise ValueError("a linear model takes no layers; remove model.layers")
        return self


class Whole(Section):
    title: str = ""
    training: Training = Training()
    model: Model = Model()


def from_text(
    tmp_path: Path, text: str, *overrides: str, aliases: dict[str, str] | None = None
) -> Resolved[Whole]:
    file = tmp_path / "e.yaml"
    file.write_text(text)
    layers, problems = read_layers(file)
    return resolve(Whole, layers, overrides, aliases=aliases, problems=problems, file=file)


def problems_of(
    tmp_path: Path, text: str, *overrides: str, aliases: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(InputError) as caught:
        from_text(tmp_path, text, *overrides, aliases=aliases)
    return [problem.replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def test_every_value_has_its_source(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "training: {batch_size: 4, amp: true}\nmodel:\n  layers:\n  - {width: 1}\n"
    )
    resolved = from_text(
        tmp_path, "_base_: base.yaml\ntraining:\n  batch_size: 8\n", "training.learning_rate=1e-4"
    )
    assert resolved.config.training == Training(batch_size=8, amp=True, learning_rate=1e-4)
    sources = {key: value.replace(f"{tmp_path}/", "") for key, value in resolved.sources.items()}
    assert sources["training.batch_size"] == "e.yaml:3"
    assert sources["training.amp"] == "base.yaml:1"
    assert sources["training.learning_rate"] == "command line"
    assert sources["training.clip"] == "default"
    assert sources["model.layers.0.width"] == "base.yaml:4"
    assert sources["model.sizes"] == "default"


def test_all_problems_come_at_once_each_with_place_value_nearest_key_type_and_default(tmp_path: Path) -> None:
    text = "training:\n  bath_size: 4\n  learning_rate: fast\n  mode: maxx\nmodell: {name: x}\ntraining: 3\n"
    assert problems_of(tmp_path, text, "training.batch_size=0", "batch_sise=2") == [
        "e.yaml:6: 'training' is there twice (first at e.yaml:1); keep one",
        "e.yaml:2: training.bath_size: 4 was given, but there is no such key; "
        "did you mean training.batch_size (int ≥ 1, default 32)?",
        "e.yaml:5: modell.name: 'x' was given, but there is no such key; "
        "did you mean model.name (str, default net)?",
        "command line: batch_sise: 2 was given, but there is no such key; "
        "did you mean training.batch_size (int ≥ 1, default 32)?",
        "command line: training.batch_size: 0 is not int ≥ 1 (default 32)",
        "e.yaml:3: training.learning_rate: 'fast' is not float (default 0.001)",
        "e.yaml:4: training.mode: 'maxx' is not min | max (default min); did you mean max?",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.batch_size='4'", "'4' is not int ≥ 1 (default 32); write 4 without quotes"),
        ("training.batch_size=1.5", "1.5 is not int ≥ 1 (default 32)"),
        ("training.batch_size=true", "true is not int ≥ 1 (default 32)"),
        ("training.batch_size=null", "null is not int ≥ 1 (default 32)"),
        ("training.amp=yes", "'yes' is not bool (default false); write true"),
        ("training.amp=1", "1 is not bool (default false)"),
        ("training.learning_rate=.nan", "NaN is not float (default 0.001)"),
        ("training.learning_rate=.inf", "Infinity is not float (default 0.001)"),
        ("model.workers=many", "'many' is not float or auto (default auto)"),
        ("model.sizes=[1, x]", "'x' is not int"),
        ("model.sizes=3", "3 is not list of int (default [256, 128])"),
        ("training=3", "3 is not a section of `key: value` lines"),
        ("training.optimizer={name: sgd, momentum: 2}", "2 is not float ≥ 0 < 1 (default 0.0)"),
    ],
)
def test_wrong_values_are_refused_with_type_and_default(tmp_path: Path, override: str, sentence: str) -> None:
    problems = problems_of(tmp_path, "title: t", override)
    assert len(problems) == 1
    assert problems[0].startswith("command line: ")
    assert sentence in problems[0]


def test_a_value_error_of_a_validator_is_told_with_the_sections_place(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "model:\n  name: linear\n  layers: [{width: 2}]\n")
    assert problems == ["e.yaml:1: model: a linear model takes no layers; remove model.layers"]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("title=2024", "title", "2024"),
        ("title=1e-4", "title", "1e-4"),
        ("title=", "title", ""),
        ("title=a: b", "title", "a: b"),
        ("title=[x", "title", "[x"),
        ("training.batch_size=1e3", "training.batch_size", 1000),
        ("training.learning_rate=1", "training.learning_rate", 1.0),
        ("training.clip=null", "training.clip", None),
        ("model.workers=0.5", "model.workers", 0.5),
        ("model.workers=auto", "model.workers", "auto"),
        ("training={batch_size: 2, amp: true}", "training.batch_size", 2),
        ("training.optimizer={name: sgd, momentum: 0.9}", "training.optimizer.momentum", 0.9),
        ("model.per_group={head: {width: 3}}", "model.per_group.head.width", 3),
        ("model.per_group.head.width=3", "model.per_group.head.width", 3),
        ("model.sizes.1=64", "model.sizes.1", 64),
    ],
)
def test_values_are_read_as_their_field_wants_them(
    tmp_path: Path, override: str, path: str, value: object
) -> None:
    found: object = from_text(tmp_path, "training: {learning_rate: 0.5}", override).config.model_dump()
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    assert (found, type(found)) == (value, type(value))


def test_an_entry_of_a_list_keeps_its_neighbours(tmp_path: Path) -> None:
    text = "model: {layers: [{width: 1}, {width: 2}]}"
    resolved = from_text(tmp_path, text, "model.layers.1.width=5", "model.sizes.1=64")
    assert [layer.width for layer in resolved.config.model.layers] == [1, 5]
    assert resolved.config.model.sizes == (256, 64)
    assert resolved.sources["model.sizes"] == "default, command line"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "model.layers.2.width=5",
            "entry 2 of 'model.layers' does not exist: the list has 2 (0 to 1); add the entry",
        ),
        ("model.layers.7={width: 1}", "entry 7 of 'model.layers' does not exist"),
        ("model.layers.width=5", "'model.layers' is a list: write 'model.layers.0.width'"),
        ("title.x=5", "'title.x' cannot be set, as 'title' holds 't'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_the_mend(
    tmp_path: Path, override: str, sentence: str
) -> None:
    text = "title: t\nmodel: {layers: [{width: 1}, {width: 2}]}"
    assert any(sentence in problem for problem in problems_of(tmp_path, text, override))


def test_a_dotted_key_of_a_file_changes_one_entry_of_its_bases_list(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {layers: [{width: 1}, {width: 2}]}")
    resolved = from_text(tmp_path, "_base_: base.yaml\nmodel.layers.1.width: 9\n")
    assert [layer.width for layer in resolved.config.model.layers] == [1, 9]
    assert resolved.sources["model.layers.1.width"].endswith("e.yaml:2")


ALIASES = {
    "hparams.bs": "training.batch_size",
    "lr": "training.learning_rate",
    "alpha": "training.learning_rate",
    "first.width": "model.layers.0.width",
}


def test_a_guides_spelling_works_and_prints_ours(tmp_path: Path) -> None:
    resolved = from_text(tmp_path, "hparams: {bs: 4}\nfirst: {width: 3}\n", "lr=0.1", aliases=ALIASES)
    assert resolved.config.training == Training(batch_size=4, learning_rate=0.1)
    assert [layer.width for layer in resolved.config.model.layers] == [3]
    assert [note.replace(f"{tmp_path}/", "") for note in resolved.notes] == [
        "e.yaml:1: hparams.bs is training.batch_size here",
        "e.yaml:2: first.width is model.layers.0.width here",
        "override: lr=0.1",
        "command line: lr is training.learning_rate here",
    ]


def test_a_guides_spelling_that_contradicts_ours_is_refused(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "lr: 1.0\nalpha: 2.0\n", aliases=ALIASES)
    assert problems == [
        "e.yaml:2: alpha: 2.0 contradicts 1.0 (e.yaml:1), as both mean training.learning_rate; keep one"
    ]


def test_a_guides_key_beside_an_unknown_one_is_still_an_error(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "hparams: {bs: 4, zzzzzz: 1}", aliases=ALIASES)
    assert len(problems) == 1
    assert (
        "hparams.zzzzzz: 1 was given, but there is no such key; the sections are training, model"
        in problems[0]
    )


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 10**6), st.floats(1e-9, 1.0), st.booleans(), st.text(max_size=10))
def test_with_values_equals_building_the_config_directly(
    size: int, rate: float, amp: bool, title: str
) -> None:
    values = {
        "training.batch_size": size,
        "training.learning_rate": rate,
        "training.amp": amp,
        "title": title,
    }
    resolved = resolve(Whole).with_values(values, "trial 3")
    assert resolved.config == Whole(
        title=title, training=Training(batch_size=size, learning_rate=rate, amp=amp)
    )
    assert {resolved.sources[path] for path in values} == {"trial 3"}


def test_with_values_refuses_what_the_command_line_refuses() -> None:
    with pytest.raises(InputError) as caught:
        resolve(Whole).with_values({"training.batch_sise": 3, "training.amp": "yes"}, "space.yaml:4")
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == ["space.yaml:4"] * 2


def test_to_yaml_is_a_ready_file(tmp_path: Path) -> None:
    resolved = from_text(
        tmp_path, "title: '007'\nmodel: {layers: [{width: 2}]}", "training.learning_rate=1e-5"
    )
    again = from_text(tmp_path, resolved.to_yaml())
    assert again.config == resolved.config


@pytest.mark.parametrize(
    ("path", "type_text", "default"),
    [
        ("training.batch_size", "int ≥ 1", 32),
        ("training.clip", "float or null", None),
        ("training.mode", "min | max", "min"),
        ("training.optimizer.momentum", "float ≥ 0 < 1", 0.0),
        ("model.layers.3.width", "int ≥ 1", 8),
        ("model.per_group.any.width", "int ≥ 1", 8),
        ("model.sizes", "list of int", [256, 128]),
    ],
)
def test_field_at_knows_type_and_default(path: str, type_text: str, default: object) -> None:
    field = field_at(Whole, path)
    assert (field.path, field.type_text, field.default) == (path, type_text, default)


def test_field_at_names_the_nearest_key() -> None:
    with pytest.raises(
        InputError, match=r"model\.layers\.2\.widht: .* model\.layers\.2\.width \(int ≥ 1, default 8\)"
    ):
        field_at(Whole, "model.layers.2.widht")


def test_nan_is_refused_in_every_section() -> None:
    with pytest.raises(ValueError, match="finite"):
        Training(learning_rate=float("nan"))


def test_a_relative_data_path_is_made_absolute_and_keeps_its_source(monkeypatch, tmp_path):
    from voxray.core.experiment import load_experiment

    (tmp_path / "e.yaml").write_text("task: cxr_memory\ndata: {path: some/folder}\n")
    monkeypatch.chdir(tmp_path)
    resolved = load_experiment("e.yaml")
    assert resolved.config.data.path == str(tmp_path / "some/folder")
    assert resolved.sources["data.path"].endswith("e.yaml:2")
    assert load_experiment("e.yaml", ["data.path=synth:tiny"]).config.data.path == "synth:tiny"
