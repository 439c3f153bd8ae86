"""YAML reading: YAML 1.2 scalars, lines, and everything that is refused."""

import math
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.config.yaml import dump_yaml, parse_yaml, read_yaml


def plain(text: str) -> object:
    tree, problems = parse_yaml(text, "f.yaml")
    assert problems == []
    return tree.plain()


# The core schema's own examples and rules: https://yaml.org/spec/1.2.2/#103-core-schema
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("12e03", 12e3),
        ("1.", 1.0),
        ("0o17", 15),
        ("0x3A", 58),
        ("-19", -19),
        ("010", 10),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ('"null"', "null"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = plain(f"key: {text}")["key"]
    assert (found, type(found)) == (value, type(value))


def test_infinities_and_nan_are_floats() -> None:
    assert plain("[.inf, -.INF]") == [math.inf, -math.inf]
    assert math.isnan(plain("x: .NaN")["x"])


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
)
# yaml cannot write the control characters that YAML does not allow; config files have none.
printable = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.dictionaries(
        printable,
        scalars.map(lambda v: v.replace("\r", "") if isinstance(v, str) else v) | st.lists(printable),
    )
)
def test_dumped_values_read_back_equal(values: dict) -> None:
    values = {k: (v if not isinstance(v, str) or v.isprintable() else "x") for k, v in values.items()}
    assert plain(dump_yaml(values)) == values


def test_every_value_knows_its_line() -> None:
    tree, _ = parse_yaml("a: 1\nb:\n  c: [2,\n      3]\n", "f.yaml")
    assert tree.get(("a",)).source == "f.yaml:1"
    assert tree.get(("b", "c")).source == "f.yaml:3"
    assert tree.get(("b", "c", "1")).source == "f.yaml:4"


def test_all_duplicate_keys_are_named_with_both_lines() -> None:
    _, problems = parse_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\n", "f.yaml")
    assert problems == [
        "f.yaml:2: 'c' is there twice (first at f.yaml:2); keep one",
        "f.yaml:3: 'a' is there twice (first at f.yaml:1); keep one",
    ]
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}  # what PyYAML does, and why the check is there


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['true']", "!custom 3", "!!binary aGk=", "!!str 3"]
)
def test_tags_are_refused(value: str) -> None:
    _, problems = parse_yaml(f"a: {value}", "f.yaml")
    assert len(problems) == 1
    assert "f.yaml:1: the tag" in problems[0]


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    start = time.process_time()
    with pytest.raises(InputError, match="expands to more than"):
        parse_yaml("\n".join(lines), "f.yaml")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["a: &a [*a]", "[" * 100 + "]" * 100, "[" * 5000])
def test_endless_and_deep_files_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^f\.yaml"):
        parse_yaml(text, "f.yaml")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a:\n\tb: 1\n", r"bad\.yaml:2: a tab; indent with spaces"),
        (b"a: 1\nb: \xff\xfe\n", r"bad\.yaml:2: is not UTF-8 text \(byte 0xff\)"),
        (b"a: [1, 2\n", r"bad\.yaml:2: is not YAML"),
        (b"a: 1\n---\nb: 2\n", r"bad\.yaml:2: is not YAML: but found another document"),
        (b"x" * (2 << 20), r"bad\.yaml: is 2 MiB"),
    ],
)
def test_unreadable_files_name_the_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_yaml(path, "bad.yaml")


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_yaml(path, path.name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path, "bom.yaml")[0].plain() == {"a": 1}
