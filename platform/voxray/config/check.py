"""Check a tree of values against a config class: all problems at once, each with its place and its mend."""

import difflib
import json
import math
import re
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from voxray.config.schema import FieldAt, accepts, find, plain_text, unknown_key
from voxray.config.section import Section
from voxray.config.tree import KeyPath, Node, show

C = TypeVar("C", bound=Section)
_NUMBER = re.compile(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*")
_YES_NO = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where in the config, where it was written, and a sentence with the mend."""

    path: KeyPath
    source: str
    text: str

    def __str__(self) -> str:
        """Return the line that the user reads."""
        key = ".".join(self.path)
        return f"{self.source}: {key}: {self.text}" if key else f"{self.source}: {self.text}"


def check(config_class: type[C], tree: Node) -> tuple[C | None, list[Problem]]:
    """Return the validated config, or None and every problem."""
    problems: list[Problem] = []
    known = _fit(config_class, tree, (), problems)
    try:
        # JSON mode: strict about types, but lists become tuples, as a file cannot write a tuple.
        config = config_class.model_validate_json(json.dumps(known.plain()), strict=True)
    except ValidationError as error:
        return None, problems + _problems(config_class, known, error)
    return (None if problems else config), problems


def _fit(config_class: type[Section], node: Node, path: KeyPath, problems: list[Problem]) -> Node:
    """Return the tree without unknown keys (each a problem), its scalars read as their field wants them."""
    if not isinstance(node.value, dict | list):
        return _fit_scalar(find(config_class, path), node)
    children: list[tuple[str, Node]] = []
    for key, child in node.children():
        here = (*path, key)
        field = find(config_class, here)
        if field is None and not _holds_anything(config_class, path):
            if isinstance(node.value, dict):
                problems.append(_unknown(config_class, here, child))
                continue
        elif (
            field is not None
            and accepts(field.annotation, str)
            and isinstance(child.value, dict | list)
            and child.text
            and not _has_parts(field.annotation)
        ):
            child = Node(child.text, child.source)  # `description=a: b` is text, though YAML reads a map
        children.append((key, _fit(config_class, child, here, problems)))
    return replace(
        node, value=dict(children) if isinstance(node.value, dict) else [child for _, child in children]
    )


def _has_parts(annotation: Any) -> bool:
    """Return whether a list or a map fits an annotation: `bands=[0, 2]` beside `bands=all`."""
    return get_origin(annotation) in (tuple, list, dict) or any(map(_has_parts, get_args(annotation)))


def _holds_anything(config_class: type[Section], path: KeyPath) -> bool:
    """Return whether `path` is inside a value that the schema does not look into, such as `Any`."""
    known = (find(config_class, path[:length]) for length in range(len(path), 0, -1))
    nearest_field = next((field for field in known if field), None)
    return nearest_field is not None and not nearest_field.is_section


def _unknown(config_class: type[Section], path: KeyPath, node: Node) -> Problem:
    while len(children := list(node.children())) == 1 and isinstance(
        node.value, dict
    ):  # memory.bank_size=256
        path, node = (*path, children[0][0]), children[0][1]
    value = "" if isinstance(node.value, dict | list) else f"{show(node.plain())} was given, but "
    return Problem(path, node.source, value + unknown_key(config_class, ".".join(path)))


def _fit_scalar(field: FieldAt | None, node: Node) -> Node:
    """Text fields take what was typed (`experiment_name=2024`), whole-number fields take `1e3`."""
    if field is None or isinstance(node.value, str):
        return node
    wants_text = accepts(field.annotation, str) and not accepts(field.annotation, type(node.value))
    if wants_text and node.text is not None and (node.value is not None or not node.text.strip()):
        return replace(node, value=node.text)
    if (
        isinstance(node.value, float)
        and not accepts(field.annotation, float)
        and accepts(field.annotation, int)
    ):
        return (
            replace(node, value=int(node.value))
            if math.isfinite(node.value) and node.value.is_integer()
            else node
        )
    return node


def _problems(config_class: type[Section], tree: Node, error: ValidationError) -> list[Problem]:
    grouped: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False):
        path, node = _locate(tree, detail)
        grouped.setdefault(path, Problem(path, node.source, _sentence(config_class, path, node, detail)))
    return list(grouped.values())


def _locate(tree: Node, detail: ErrorDetails) -> tuple[KeyPath, Node]:
    """Return the path of an error in the tree; pydantic's location also names members of unions."""
    path, node = (), tree
    for part in detail["loc"]:
        child = node.get((str(part),))
        if child is not None:
            path, node = (*path, str(part)), child
    if detail["type"] == "missing":
        return (*path, str(detail["loc"][-1])), node
    return path, node


def _sentence(config_class: type[Section], path: KeyPath, node: Node, detail: ErrorDetails) -> str:
    field = find(config_class, path)
    if detail["type"] == "missing":
        return f"is missing; add it{f' ({field.type_text})' if field else ''}"
    if detail["type"] in ("value_error", "assertion_error"):
        return detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if field is None:
        return f"{show(node.plain())}: {detail['msg']}"
    if field.is_section:
        return f"{show(node.plain())} is not a section of `key: value` lines"
    default = "" if field.default is PydanticUndefined else f" (default {plain_text(field.default)})"
    return f"{show(node.plain())} is not {field.type_text}{default}{_mend(field, node.value)}"


def _mend(field: FieldAt, value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if _NUMBER.fullmatch(value) and (accepts(field.annotation, int) or accepts(field.annotation, float)):
        return f"; write {value.strip()} without quotes"
    if accepts(field.annotation, bool) and value.lower() in _YES_NO:
        return f"; write {_YES_NO[value.lower()]}"
    near = difflib.get_close_matches(
        value, [choice for choice in _choices(field.annotation) if isinstance(choice, str)], 1
    )
    return f"; did you mean {near[0]}?" if near else ""


def _choices(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [
        choice
        for argument in arguments
        for choice in ([argument] if isinstance(argument, str) else _choices(argument))
    ]
