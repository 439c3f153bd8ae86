"""Overrides: `key=value`, `--override key=value`, `--key=value` and `--key value` become `key=value`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from voxray.config.errors import InputError
from voxray.config.tree import KeyPath, Node
from voxray.config.yaml import parse_yaml

COMMAND_LINE = "command line"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_*-]+)*")
_OPTION = re.compile(rf"--({_KEY.pattern})(?:=(.*))?", re.DOTALL)
_EXPERIMENT_OPTIONS = ("config", "experiment")  # what the guides' scripts call the experiment


@dataclass(frozen=True)
class Arguments:
    """What follows a command: plain words, what `--config` names, and canonical overrides in order."""

    words: tuple[str, ...]
    experiments: tuple[str, ...]
    overrides: tuple[str, ...]


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """Sort arguments into words, experiments (`--config FILE`) and overrides.

    Raises InputError for an option without a value and for `--override` without `key=value`.
    """
    words: list[str] = []
    experiments: list[str] = []
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option = _OPTION.fullmatch(argument)
        if option is None:
            (overrides if _is_assignment(argument) else words).append(argument)
            continue
        key, value = option[1], option[2]
        if value is None:
            value = _next_value(key, rest)
        if key == "override":
            if not _is_assignment(value):
                raise InputError(
                    f"--override {value}: write --override key=value, e.g. --override training.epochs=2"
                )
            overrides.append(value)
        elif key in _EXPERIMENT_OPTIONS:
            experiments.append(value)
        else:
            overrides.append(f"{key}={value}")
    return Arguments(tuple(words), tuple(experiments), tuple(overrides))


def parse_override(text: str) -> tuple[KeyPath, Node]:
    """Return the path and the value of `key=value`.

    The value is YAML (`1e-4`, `null`, `[1, 2]`, `{a: 1}`), or text where it is not.

    Raises InputError when the text is not `key=value`.
    """
    if not _is_assignment(text):
        raise InputError(f"'{text}' is not an override; write key=value, e.g. training.epochs=2")
    key, _, value = text.partition("=")
    try:
        node, problems = parse_yaml(value, COMMAND_LINE, lines=False)
    except InputError:  # `*.bias`, `[a` and `x: y: z` are no YAML, but good text
        return tuple(key.split(".")), Node(value, COMMAND_LINE)
    if problems:
        raise InputError(*(f"{text}: {problem}" for problem in problems))
    quoted = isinstance(node.value, str) and node.text is None
    return tuple(key.split(".")), node if quoted else Node(node.value, COMMAND_LINE, value)


def _is_assignment(text: str) -> bool:
    return "=" in text and _KEY.fullmatch(text.partition("=")[0]) is not None


def _next_value(key: str, rest: list[str]) -> str:
    if rest and not rest[0].startswith("--"):
        return rest.pop(0)
    raise InputError(
        f"--{key} has no value; write {'--override key=value' if key == 'override' else f'{key}=value'}"
    )
