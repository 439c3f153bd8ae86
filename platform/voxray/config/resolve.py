"""Files, guides' spellings, overrides and searched values → a validated config, every value with its source.

There is one operation, dotted path → value; a file, the command line and a search differ in their source.
"""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from voxray.config.check import Problem, check
from voxray.config.errors import InputError
from voxray.config.overrides import parse_override
from voxray.config.schema import find
from voxray.config.section import Section
from voxray.config.spellings import Aliases, Move, Spellings
from voxray.config.tree import KeyPath, Node, assign, merge, show
from voxray.config.yaml import dump_yaml

C = TypeVar("C", bound=Section)
DEFAULT = "default"


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A config, `sources` by each leaf's dotted path, and `notes` that the user should be told.

    `spelled` has the guide's spelling of the paths that were given by one.
    """

    config: C
    sources: dict[str, str]
    notes: list[str]
    file: Path | None
    tree: Node
    aliases: Aliases
    spelled: Mapping[str, str] = field(default_factory=dict[str, str])

    def place(self, path: str) -> str:
        """Return a path with the key that gave it and where: `data.path (data.data_dir, a.yaml:3)`."""
        said = [self.spelled[path]] if path in self.spelled else []
        source = self.sources.get(path, DEFAULT)
        return f"{path} ({', '.join([*said, source])})"

    def with_values(self, values: Mapping[str, Any], source: str) -> "Resolved[C]":
        """Return the config with the values at these dotted paths, checked like any other.

        Raises InputError naming `source` and every wrong key and value.
        """
        return self.with_nodes(
            [(tuple(path.split(".")), Node.of(value, source)) for path, value in values.items()]
        )

    def with_nodes(self, assignments: Sequence[tuple[KeyPath, Node]]) -> "Resolved[C]":
        """Return the config with values that know where each was written; as `with_values` else."""
        building = Building(type(self.config), self.tree, self.aliases, self.notes)
        building.spelled.update(self.spelled)
        building.add(assignments)
        return building.finish(self.file)

    def to_yaml(self) -> str:
        """Return what was set, defaults left out, as the text of an experiment file that needs no base."""
        return dump_yaml(self.tree.plain())


def resolve(
    config_class: type[C],
    layers: Sequence[Node] = (),
    overrides: Sequence[str] = (),
    *,
    aliases: Aliases | None = None,
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
    file: Path | None = None,
) -> Resolved[C]:
    """Resolve maps (a file's bases first) and `key=value` overrides into a config of `config_class`.

    `problems` were found while reading and are raised together with what is found here, in one InputError.
    """
    building = Building(config_class, Node({}, str(file or "")), aliases or {}, notes, problems)
    for layer in layers:
        building.add_layer(layer)
    for text in overrides:
        building.add_override(text)
    return building.finish(file)


class Building(Generic[C]):
    """A config on its way: the tree so far, its problems and notes, and the keys that nothing here says."""

    def __init__(
        self,
        config_class: type[C],
        tree: Node,
        aliases: Aliases,
        notes: Sequence[str] = (),
        problems: Sequence[str] = (),
    ) -> None:
        self.config_class, self.tree, self.aliases = config_class, tree, aliases
        self.notes, self.problems = list(notes), list(problems)
        self.unsaid: list[Move] = []
        self.spelled: dict[str, str] = {}
        self._set_beside: set[KeyPath] = set()
        self._spellings = Spellings(aliases)

    def add_layer(self, layer: Node) -> None:
        """Add a file's map: plain keys, then guides' spellings and dotted keys (`stages.1.epochs: 2`)."""
        rest, moved = self._spellings.translate(layer, ())
        entries = list(rest.children()) if rest else []
        plain = Node({key: node for key, node in entries if "." not in key}, layer.source)
        self.tree = merge(self.tree, plain)
        self._move(moved, plain, append=True)
        self.add([(tuple(key.split(".")), node) for key, node in entries if "." in key])

    def add_override(self, text: str) -> None:
        """Add one canonical `key=value` of the command line, and note it."""
        try:
            path, node = parse_override(text)
        except InputError as error:
            self.problems += error.problems
            return
        self.notes.append(f"override: {text}")
        self.add([(path, node)])

    def add(self, assignments: Sequence[tuple[KeyPath, Node]]) -> None:
        """Assign each value at its path; a guide's path is moved to ours, and noted."""
        for path, node in assignments:
            rest, moved = self._spellings.translate(node, path)
            if rest is not None:
                self._assign(path, rest)
            self._move(moved, Node({}, node.source), append=False)

    def _move(self, moves: Sequence[Move], beside: Node, append: bool) -> None:
        said: dict[KeyPath, Node] = {}
        for move in moves:
            if move.instead:
                self.unsaid.append(move)
                continue
            if append:
                self._add_within(move)
            if (problem := self._not_held(move)) is not None:
                self.problems.append(problem)
                continue
            target, node = move.path, move.node
            other = said.setdefault(target, beside.get(target) or node)
            if other.plain() != node.plain():
                self.problems.append(
                    f"{node.source}: {move.given}: {show(node.plain())} contradicts {show(other.plain())} "
                    f"({other.source}), as both mean {'.'.join(target)}; keep one"
                )
            self.notes.append(move.note())
            self._assign(target, node, append)
            self.spelled[".".join(target)] = move.given
            self._add_beside(move, append)

    def _add_within(self, move: Move) -> None:
        """Set what a file's spelling takes for granted, where nothing sets it: a guide's phases as stages."""
        for path, value in move.within.items():
            if self.tree.get(path) is None:
                self.notes.append(
                    f"{move.node.source}: {move.given} sets {'.'.join(path)}={show(value, 300)} too"
                )
                self._assign(path, Node.of(value, f"goes with {move.given}"), append=True)

    def _not_held(self, move: Move) -> str | None:
        """Return the sentence about an entry that is not the one which a spelling means."""
        for path, wanted in move.holds.items():
            in_list = self.tree.get(path[:1]) is not None or move.path[:1] == path[:1]
            found = self.tree.get(path)
            if in_list and (found is None or found.plain() != wanted):
                is_here = "is not there" if found is None else f"is {show(found.plain())}"
                return (
                    f"{move.node.source}: {move.given} is {'.'.join(move.path)} where {'.'.join(path)} is "
                    f"{show(wanted)}, and here it {is_here}; write the key of this experiment that is meant"
                )
        return None

    def _add_beside(self, move: Move, append: bool) -> None:
        """Set what goes with a spelling, where nothing sets it: a project's name switches its tracker on."""
        for path, value in move.also.items():
            if self.tree.get(path) is None or path in self._set_beside:
                self._set_beside.add(path)
                self.notes.append(f"{move.node.source}: {move.given} sets {'.'.join(path)}={show(value)} too")
                self._assign(path, Node.of(value, move.node.source), append)

    def _assign(self, path: KeyPath, node: Node, append: bool = False) -> None:
        self.spelled.pop(".".join(path), None)
        try:
            self.tree = assign(self._with_default_list(path), path, node, append)
        except InputError as error:
            self.problems += [f"{node.source}: {problem}" for problem in error.problems]

    def _with_default_list(self, path: KeyPath) -> Node:
        """Return the tree with a list's default written out where `path` changes an entry of it."""
        for length, part in enumerate(path):
            field = find(self.config_class, path[:length]) if part.isdecimal() else None
            if field and self.tree.get(path[:length]) is None and type(field.default) is list:
                return assign(self.tree, path[:length], Node.of(field.default, DEFAULT))
        return self.tree

    def finish(self, file: Path | None) -> Resolved[C]:
        """Return the resolved config, or raise one InputError with all problems."""
        config, found = self.check()
        unsaid = [f"{move.node.source}: {move.given}: {move.instead}" for move in self.unsaid]
        problems = [*self.problems, *unsaid, *map(str, found)]
        if problems or config is None:
            raise InputError(*dict.fromkeys(problems))
        sources = leaf_sources(config, self.tree)
        return Resolved(config, sources, self.notes, file, self.tree, self.aliases, self.spelled)

    def check(self) -> tuple[C | None, list[Problem]]:
        """Check what is there so far."""
        return check(self.config_class, self.tree)


def leaf_sources(config: Section, tree: Node) -> dict[str, str]:
    """Return the source of every value of a config, by dotted path; a list of scalars is one value."""
    return {
        ".".join(path): node.sources() if (node := tree.get(path)) is not None else DEFAULT
        for path, _ in leaves(config.model_dump(mode="json"))
    }


def _holds_containers(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict | list) for item in cast("list[Any]", value))


def leaves(value: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Return (path, value) of every scalar, every list of scalars and every empty map or list, in order."""
    if isinstance(value, dict) and (value or not path):
        items = list(cast("dict[str, Any]", value).items())
    elif _holds_containers(value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return [(path, value)]
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))]
