"""Guides' spellings: other paths, and other values, for what our keys say. One table, for files, the command
line and searches alike.

A pattern is a dotted path in which `*` stands for any index of a list; below a pattern that is a section,
every path is moved with it (`mlflow` → `logging.mlflow`). The longest pattern that fits decides, and what it
leads to may be a spelling again.
"""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from voxray.config.tree import KeyPath, Node, show

_INDEX = "*"
NOTHING = object()  # what `Spelling.value` returns for a value that says nothing at this path
_MAX_HOPS = 6  # spellings that lead to spellings; a table that goes round in a circle is our mistake


@dataclass(frozen=True)
class Spelling:
    """What a guide's key is here. Where `path` is the key itself, its values alone are other ones."""

    path: str = ""
    value: Callable[[Any], Any] | None = None  # theirs → ours; what it does not know it returns as it came
    # Set too, where nothing sets them; a function is one of their value.
    also: Mapping[str, Any] = field(default_factory=dict[str, Any])
    instead: str = ""  # no key of ours says it: what to write
    more: tuple["Spelling", ...] = ()  # what else the key says, whatever is set there
    # What a file that has the key takes for granted: set before it, where the file and its bases set nothing.
    within: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # What an entry of a list must be for the key to mean it (`stages.2.name: phase2`), where there is a list.
    holds: Mapping[str, Any] = field(default_factory=dict[str, Any])


Aliases = Mapping[str, str | Spelling]


@dataclass(frozen=True)
class Move:
    """A value that was written under a guide's spelling: as it was given, and what it is here."""

    given: str
    given_value: Any
    path: KeyPath
    node: Node
    also: Mapping[KeyPath, Any]
    instead: str = ""
    within: Mapping[KeyPath, Any] = field(default_factory=dict[KeyPath, Any])
    holds: Mapping[KeyPath, Any] = field(default_factory=dict[KeyPath, Any])

    def note(self) -> str:
        """Return the sentence for the user, with the canonical spelling."""
        ours, value = ".".join(self.path), self.node.plain()
        if _same(value, self.given_value):
            text = f"{self.given} is {ours} here"
        elif self.given == ours:
            text = f"{ours}: {show(self.given_value)} is {show(value)} here"
        else:
            text = f"{self.given}: {show(self.given_value)} is {ours}: {show(value)} here"
        return f"{self.node.source}: {text}"


class Spellings:
    """A table of spellings, ready to be looked up part by part."""

    def __init__(self, aliases: Aliases) -> None:
        """Arrange the table as a tree of path parts; a spelling stands under the part ''."""
        self._root: dict[str, Any] = {}
        for pattern, said in aliases.items():
            place = self._root
            for part in pattern.split("."):
                place = place.setdefault(part, {})
            place[""] = said if isinstance(said, Spelling) else Spelling(said)

    def translate(self, node: Node, path: KeyPath) -> tuple[Node | None, list[Move]]:
        """Return what of `node`, standing at `path`, is in our words (None: nothing), and the rest, moved."""
        return self._translate(node, path, 0)

    def _translate(self, node: Node, path: KeyPath, hops: int) -> tuple[Node | None, list[Move]]:
        assert hops < _MAX_HOPS, f"spellings of {'.'.join(path)} go round in a circle"
        at = _At([(self._root, ())], None)
        for part in path:
            at = at.step(part)
        rest, moves = _split(node, path, at)
        done: list[Move] = []
        for move in moves:
            if move.instead:
                done.append(move)
                continue
            kept, more = self._translate(move.node, move.path, hops + 1)
            if kept is not None:
                done += _leaf_moves(replace(move, node=kept))
            done += [_joined(move, later) for later in more]
        return rest, done


_Found = tuple[Spelling, int, KeyPath]  # a spelling, the length of its pattern, the indices in it


@dataclass(frozen=True)
class _At:
    """Where a path stands in the tree: the places that it may be at, and the spelling above them."""

    places: list[tuple[dict[str, Any], KeyPath]]
    found: _Found | None
    depth: int = 0

    def step(self, part: str) -> "_At":
        places = [(place[part], indices) for place, indices in self.places if part and part in place]
        if part.isdecimal():
            places += [(place[_INDEX], (*indices, part)) for place, indices in self.places if _INDEX in place]
        depth = self.depth + 1
        here = [(place[""], depth, indices) for place, indices in places if "" in place]
        return _At(places, here[0] if here else self.found, depth)

    def goes_on(self) -> bool:
        return any(set(place) - {""} for place, _ in self.places)


def _split(node: Node, path: KeyPath, at: _At) -> tuple[Node | None, list[Move]]:
    if not (at.goes_on() and list(node.children())):
        moved = _moved(node, path, at.found)
        return (node, []) if moved is None else (None, moved)
    moves: list[Move] = []
    kept: list[tuple[str, Node | None]] = []
    for key, child in node.children():
        below, there = at, path
        for part in key.split("."):
            below, there = below.step(part), (*there, part)
        rest, more = _split(child, there, below)
        moves += more
        kept.append((key, rest))
    if isinstance(node.value, list):
        # A map of which nothing is left keeps its place in the list.
        empty = [Node({}, child.source) if isinstance(child.value, dict) else None for child in node.value]
        entries = [rest or other for (_, rest), other in zip(kept, empty, strict=True)]
        left = [entry for entry in entries if entry is not None]
        return (replace(node, value=left) if left else None), moves
    left = {key: rest for key, rest in kept if rest is not None}
    return (replace(node, value=left) if left or not path else None), moves


def _moved(node: Node, path: KeyPath, found: _Found | None) -> list[Move] | None:
    """Return the moves that a spelling makes of a value; None where it says nothing of it."""
    if found is None:
        return None
    spelling, length, indices = found
    if spelling.instead:
        return [Move(".".join(path), node.plain(), path, node, {}, spelling.instead)]
    ours = _with_indices(spelling.path, indices)
    is_section = len(path) > length or isinstance(node.value, dict)
    if is_section and ours[:length] == path[:length]:  # of ours: the guide's key is a plain value there
        return None
    first, *others = (_move(node, path, each, length, indices) for each in (spelling, *spelling.more))
    if first is not None and first.path == path and _same(first.node.plain(), node.plain()):
        return None
    return [move for move in (first, *others) if move is not None]


def _move(node: Node, path: KeyPath, spelling: Spelling, length: int, indices: KeyPath) -> Move | None:
    """Return the move of a value to one path; None where it says nothing there."""
    value = node.plain()
    new = value if spelling.value is None or len(path) > length else spelling.value(value)
    if new is NOTHING:
        return None
    also = {
        _with_indices(other, indices): setting(value) if callable(setting) else setting
        for other, setting in spelling.also.items()
        if value not in (None, False, "")
    }
    within, holds = (
        {_with_indices(other, indices): said for other, said in taken.items()}
        for taken in (spelling.within, spelling.holds)
    )
    target = (*_with_indices(spelling.path, indices), *path[length:])
    changed = node if _same(new, value) else Node.of(new, node.source)
    return Move(".".join(path), value, target, changed, also, within=within, holds=holds)


def _leaf_moves(move: Move) -> Iterator[Move]:
    """Yield a moved section key by key, so that each is told, and compared with what else means it."""
    if not (isinstance(move.node.value, dict) and move.node.value):
        yield move
        return
    for key, child in move.node.children():
        own = replace(
            move,
            given=f"{move.given}.{key}",
            given_value=child.plain(),
            path=(*move.path, key),
            node=child,
        )
        yield from _leaf_moves(own)


def _joined(first: Move, later: Move) -> Move:
    """Return two moves in a row as one; the first may have moved a section, the later one a part of it."""
    inside = later.given.split(".")[len(first.path) :]
    given = ".".join([first.given, *inside])
    value = later.given_value if inside else first.given_value
    return replace(
        later,
        given=given,
        given_value=value,
        also={**first.also, **later.also},
        within={**first.within, **later.within},
        holds={**first.holds, **later.holds},
    )


def _with_indices(pattern: str, indices: KeyPath) -> KeyPath:
    left = iter(indices)
    return tuple(next(left, part) if part == _INDEX else part for part in pattern.split("."))


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
