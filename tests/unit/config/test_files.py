"""`_base_`: inside the project or next to the file, in order, without circles."""

from pathlib import Path

import pytest

from voxray.config.errors import InputError
from voxray.config.files import project_root, read_layers


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project/experiments/task").mkdir(parents=True)
    return tmp_path / "project"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_layers_come_deepest_base_first(project: Path) -> None:
    write(project / "experiments/root.yaml", "a: 1")
    write(project / "experiments/task/mid.yaml", "_base_: ../root.yaml\na: 2")
    write(project / "experiments/task/other.yaml", "a: 3")
    top = write(project / "experiments/task/top.yaml", "_base_: [mid.yaml, other.yaml]\na: 4")
    layers, problems = read_layers(top)
    assert [layer.plain()["a"] for layer in layers] == [1, 2, 3, 4]
    assert all("_base_" not in layer.plain() for layer in layers)
    assert problems == []


def test_a_circle_names_its_files(project: Path) -> None:
    write(project / "experiments/a.yaml", "_base_: b.yaml")
    b = write(project / "experiments/b.yaml", "_base_: a.yaml")
    with pytest.raises(InputError, match=r"circle: .*b\.yaml → .*a\.yaml → .*b\.yaml"):
        read_layers(b)


def test_a_base_outside_the_project_is_refused_even_through_a_link(project: Path) -> None:
    outside = write(project.parent / "outside.yaml", "a: 1")
    file = write(project / "experiments/x.yaml", "_base_: ../../outside.yaml")
    with pytest.raises(InputError, match=r"x\.yaml:1: `_base_: .*` lies outside the project"):
        read_layers(file)
    (project / "experiments/link.yaml").symlink_to(outside)
    with pytest.raises(InputError, match="lies outside the project"):
        read_layers(write(project / "experiments/y.yaml", "_base_: link.yaml"))


def test_a_base_next_to_a_file_without_a_project_is_read(tmp_path: Path) -> None:
    write(tmp_path / "alone/base.yaml", "a: 1")
    file = write(tmp_path / "alone/x.yaml", "_base_: base.yaml")
    assert project_root(file.parent) is None
    assert [layer.plain() for layer in read_layers(file)[0]] == [{"a": 1}, {}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; write `task"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "must be a map of `key: value` lines, not a list"),
        ("just words", "must be a map of `key: value` lines, not one value"),
        ("_base_: nowhere.yaml", r"x\.yaml:1: `_base_: nowhere\.yaml`: there is no file"),
        ("a: 1\n_base_: [3]", r"x\.yaml:2: `_base_` is the path of a file"),
    ],
)
def test_files_that_are_no_settings_are_refused(project: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_layers(write(project / "experiments/x.yaml", text))


def test_problems_of_all_bases_are_collected(project: Path) -> None:
    write(project / "experiments/base.yaml", "a: 1\na: 2")
    file = write(project / "experiments/x.yaml", "_base_: base.yaml\nb: !t 1")
    assert len(read_layers(file)[1]) == 2
