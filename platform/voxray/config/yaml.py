"""Read YAML safely, with the line of every value.

PyYAML's SafeLoader with YAML 1.2's core scalars (`1e-4` is a number, `yes` and `2024-01-01` are text). Tags,
duplicate keys and files that expand without end are refused; nothing is ever constructed but plain values.
"""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from voxray.config.errors import InputError
from voxray.config.tree import Node

MAX_BYTES = 1 << 20  # an experiment file is a few kB; a manifest or a table is not an experiment
MAX_NODES = 20_000  # what anchors may expand to: nine levels of nine aliases make 387 million
MAX_DEPTH = 50

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_CONSTANTS: dict[str, bool | None] = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_CONSTANTS.update(dict.fromkeys(("true", "True", "TRUE"), True))
_CONSTANTS.update(dict.fromkeys(("false", "False", "FALSE"), False))


class _Loader(yaml.SafeLoader):
    """Composes nodes only, and notes every explicit tag."""

    # Every plain scalar comes out as text and is read by `_scalar`, so PyYAML's YAML 1.1 rules never apply.
    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: list[tuple[int, str]] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if tag := getattr(event, "tag", None):
            self.tags.append((event.start_mark.line + 1, tag))
        return super().compose_node(parent, index)


def read_yaml(path: Path, name: str) -> tuple[Node, list[str]]:
    """Return a file's tree and those problems (tags, duplicate keys) that do not end the reading.

    Raises InputError for a file that cannot be read or parsed at all.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{name}: is {len(data) >> 20} MiB; a file of settings has at most {MAX_BYTES >> 20} MiB"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name}:{line}: is not UTF-8 text (byte {data[error.start]:#04x}); save it as UTF-8"
        ) from error
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str, lines: bool = True) -> tuple[Node, list[str]]:
    """Return the tree of a YAML text and its problems; `lines` adds the line to each value's source."""
    try:
        loader = _Loader(text)
        document = loader.get_single_node()
    except yaml.YAMLError as error:
        raise InputError(_syntax_error(error, name)) from error
    except RecursionError as error:
        raise InputError(f"{name}: is nested deeper than {MAX_DEPTH} levels") from error
    walk = _Walk(name, lines)
    walk.problems += [
        f"{walk.place(line)}: the tag '{tag}' is refused; write the plain value" for line, tag in loader.tags
    ]
    return (Node(None, name) if document is None else walk.node(document, 0)), walk.problems


def dump_yaml(values: Any) -> str:
    """Return plain values as YAML that `read_yaml` reads back equal, keys in the given order."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as a number; SafeDumper quotes what YAML 1.1 would."""


def _dump_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if not isinstance(_scalar(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _dump_text)


class _Walk:
    """Turns composed nodes into a tree, counting them."""

    def __init__(self, name: str, lines: bool) -> None:
        self.name, self.lines, self.count = name, lines, 0
        self.problems: list[str] = []

    def place(self, line: int) -> str:
        return f"{self.name}:{line}" if self.lines else self.name

    def node(self, node: yaml.Node, depth: int, line: int | None = None) -> Node:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise InputError(f"{self.name}: expands to more than {MAX_NODES} values or {MAX_DEPTH} levels")
        source = self.place(line or node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return Node(self.mapping(node, depth), source)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.node(child, depth + 1) for child in node.value], source)
        assert isinstance(node, yaml.ScalarNode)
        if node.style is not None:  # quoted, or a block of text
            return Node(node.value, source)
        return Node(_scalar(node.value), source, node.value)

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{self.place(line)}: a key must be one word, not a list or a map")
            elif key_node.value in entries:
                first = entries[key_node.value].source
                self.problems.append(
                    f"{self.place(line)}: '{key_node.value}' is there twice (first at {first}); keep one"
                )
            else:
                entries[key_node.value] = self.node(value_node, depth + 1, line)
        return entries


def _scalar(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10) if len(text) < 40 else text
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _syntax_error(error: yaml.YAMLError, name: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    place = f"{name}:{mark.line + 1}" if mark else name
    if "'\\t'" in problem:
        return f"{place}: a tab; indent with spaces"
    return f"{place}: is not YAML: {problem.splitlines()[0]}"
