"""The spellings of an override, and what their values are read as."""

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.config.overrides import parse_override, read_arguments

words = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
keys = (
    st.lists(words | st.integers(0, 20).map(str), max_size=3)
    .flatmap(lambda rest: words.map(lambda first: ".".join([first, *rest])))
    .filter(lambda key: key not in ("override", "config", "experiment"))
)
values = st.text(max_size=20).filter(lambda text: not text.startswith("--"))


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(
        st.tuples(keys, values, st.sampled_from(["plain", "override", "override=", "option=", "option"]))
    )
)
def test_every_spelling_gives_the_same_override_in_order(given_overrides: list[tuple[str, str, str]]) -> None:
    spelled = []
    for key, value, spelling in given_overrides:
        spelled += {
            "plain": [f"{key}={value}"],
            "override": ["--override", f"{key}={value}"],
            "override=": [f"--override={key}={value}"],
            "option=": [f"--{key}={value}"],
            "option": [f"--{key}", value],
        }[spelling]
    arguments = read_arguments(spelled)
    assert arguments.overrides == tuple(f"{key}={value}" for key, value, _ in given_overrides)
    assert arguments.words == arguments.experiments == ()


@settings(deadline=None)  # a busy machine is no failure
@given(keys, values)
def test_a_canonical_override_keeps_its_path_and_its_text(key: str, value: str) -> None:
    try:
        path, node = parse_override(f"{key}={value}")
    except InputError:  # a tag or a key twice
        reject()
    assert ".".join(path) == key
    assert node.text in (value, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=-3", -3),
        ("a=null", None),
        ("a=true", True),
        ("a='4'", "4"),
        ("a=[1, x]", [1, "x"]),
        ("a={b: 1, c: {d: 2}}", {"b": 1, "c": {"d": 2}}),
        ("a=x=y", "x=y"),
        ("a=*.bias", "*.bias"),
        ("a=[1", "[1"),
        ("a=@home", "@home"),
    ],
)
def test_values_are_yaml_or_else_text(text: str, value: object) -> None:
    path, node = parse_override(text)
    assert path == ("a",)
    assert node.plain() == value
    assert node.source == "command line"


def test_negative_numbers_may_follow_an_option() -> None:
    assert read_arguments(["--a.b", "-1", "word"]) == read_arguments(["--a.b=-1", "word"])


def test_config_and_experiment_name_the_experiment() -> None:
    arguments = read_arguments(["--config", "x.yaml", "a=1", "--experiment=y"])
    assert arguments.experiments == ("x.yaml", "y")
    assert arguments.overrides == ("a=1",)


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (["--training.epochs"], "write training.epochs=value"),
        (["--training.epochs", "--seed"], "write training.epochs=value"),
        (["--override", "epochs"], "write --override key=value"),
        (["--override"], "write --override key=value"),
    ],
)
def test_what_is_no_override_is_refused_with_the_mend(arguments: list[str], mend: str) -> None:
    with pytest.raises(InputError, match=mend):
        read_arguments(arguments)
