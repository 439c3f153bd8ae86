"""`Node`: a value with the place it was written at. Trees of nodes merge and take assignments by path."""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from voxray.config.errors import InputError

KeyPath = tuple[str, ...]
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A scalar, a map of nodes or a list of nodes; `source` is a place such as `nih64.yaml:12`.

    `text` is an unquoted scalar exactly as typed, kept for fields that want text (`experiment_name=2024`).
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    source: str
    text: str | None = None

    @classmethod
    def of(cls, value: Any, source: str) -> "Node":
        """Wrap plain Python values (maps, lists, tuples, scalars)."""
        if isinstance(value, Mapping):
            return cls({str(key): cls.of(item, source) for key, item in value.items()}, source)
        if isinstance(value, list | tuple):
            return cls([cls.of(item, source) for item in value], source)
        return cls(value, source)

    def plain(self) -> Any:
        """Return the values alone."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def children(self) -> Iterator[tuple[str, "Node"]]:
        """Yield (key or index as text, node); nothing for a scalar."""
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from ((str(index), child) for index, child in enumerate(self.value))

    def leaves(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, "Node"]]:
        """Yield (path, node) of every scalar, empty map and empty list, in order; `path` is this node's."""
        if not list(self.children()):
            yield path, self
        for key, child in self.children():
            yield from child.leaves((*path, key))

    def get(self, path: KeyPath) -> "Node | None":
        """Return the node at `path`, None where there is none."""
        node = self
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                node = node.value[part]
            elif isinstance(node.value, list) and part in map(str, range(len(node.value))):
                node = node.value[int(part)]
            else:
                return None
        return node

    def without(self, path: KeyPath) -> "Node":
        """Return the tree without the node at `path`, and without the maps that this leaves empty."""
        kept: list[tuple[str, Node]] = []
        for key, child in self.children():
            if (key,) != path[:1]:
                kept.append((key, child))
            elif len(path) > 1 and (rest := child.without(path[1:])).value:
                kept.append((key, rest))
        return replace(
            self, value=dict(kept) if isinstance(self.value, dict) else [child for _, child in kept]
        )

    def sources(self) -> str:
        """Return the places that a list's entries come from, or this node's own."""
        if isinstance(self.value, list) and self.value:
            return ", ".join(dict.fromkeys(child.sources() for child in self.value))
        return self.source


def merge(base: Node, over: Node) -> Node:
    """Return `base` with `over` on top: maps are merged key by key, anything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return replace(base, value=merged, source=over.source)


def assign(root: Node, path: KeyPath, new: Node, append: bool = False) -> Node:
    """Return `root` with `new` merged in at `path`; a digit in `path` is an index of a list.

    Raises InputError for an index outside its list (with `append`, one past the end adds an entry) and for a
    path that goes through a scalar.
    """
    return _assign(root, path, (), new, append)


def _assign(node: Node, rest: KeyPath, done: KeyPath, new: Node, append: bool) -> Node:
    if not rest:
        return merge(node, new)
    part, here = rest[0], ".".join(done)
    if node.value is None:  # nothing was there, or `null`: what the path says decides what it becomes
        node = Node([] if part.isdecimal() else {}, new.source)
    if isinstance(node.value, dict):
        child = node.value.get(part, Node(None, new.source))
        return replace(node, value={**node.value, part: _assign(child, rest[1:], (*done, part), new, append)})
    if not isinstance(node.value, list):
        raise InputError(
            f"'{'.'.join(done + rest)}' cannot be set, as '{here}' holds {show(node.value)} ({node.source})"
        )
    if not part.isdecimal():
        raise InputError(
            f"'{here}' is a list: write '{here}.0{''.join('.' + r for r in rest)}' for its first entry"
        )
    index, length = int(part), len(node.value)
    if index > length or (index == length and not append):
        raise InputError(_past_the_end(here, index, length))
    entries = [*node.value, Node(None, new.source)] if index == length else list(node.value)
    entries[index] = _assign(entries[index], rest[1:], (*done, part), new, append)
    return replace(node, value=entries)


def _past_the_end(where: str, index: int, length: int) -> str:
    holds = (
        "is empty"
        if length == 0
        else f"has {length} (0 to {length - 1})"
        if length > 1
        else "has 1 (index 0)"
    )
    return (
        f"entry {index} of '{where}' does not exist: the list {holds}; add the entry to '{where}' in the file"
    )


def show(value: Any, length: int = 60) -> str:
    """Return a value as one would type it, cut to a readable length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return f"'{text}'" if isinstance(value, str) else text
