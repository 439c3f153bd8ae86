"""Flat keys, as other programs name hyperparameters (`lr`, `batch_size`), → the experiment's dotted paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxray.config.errors import InputError
from voxray.config.resolve import Resolved
from voxray.config.schema import EACH, fields, find, unknown_key
from voxray.config.spellings import Spelling, Spellings
from voxray.config.tree import KeyPath, Node
from voxray.core.run_config import RunConfig


@dataclass(frozen=True)
class Meant:
    """What a key and its value are in the experiment's words; `also` is set with it."""

    path: str
    value: Any
    also: Mapping[str, Any]


class FlatKeys:
    """The keys of one experiment, found by their last words."""

    def __init__(self, base: Resolved[RunConfig]) -> None:
        """Take the experiment: its schema, the spellings that it understands, the stages that it has."""
        self._base = base
        self._class = type(base.config)
        self._spellings = Spellings(base.aliases)

    def path_of(self, key: str) -> str:
        """Return the one path that `key` means, which may be a guide's spelling of it.

        A whole path is itself; else the shallowest path that ends with it counts, then a guide's spelling
        that does. Raises InputError where several do, with all of them, or none, with the nearest.
        """
        parts = tuple(key.replace("-", "_").split("."))
        if self._is_value(parts) or self._moved(parts):
            return ".".join(parts)
        candidates = self._shallowest_of_schema(parts) or self._by_spelling(parts)
        if not candidates:
            raise InputError(unknown_key(self._class, ".".join(parts)))
        candidates |= {stage: stage for path in candidates for stage in self._in_stages(path)}
        if len(candidates) > 1:
            raise InputError(f"is the end of {', '.join(sorted(candidates))}; write one of these")
        return next(iter(candidates.values()))

    def meant(self, path: str, value: Any) -> Meant:
        """Return a value at `path` in the experiment's words. Raises InputError where there are none."""
        kept, moves = self._spellings.translate(Node.of(value, ""), tuple(path.split(".")))
        if kept is not None and not moves:
            return Meant(path, kept.plain(), {})
        if kept is not None or len(moves) != 1:
            raise InputError(f"{value!r} is several keys here; write them one by one")
        move = moves[0]
        if move.instead:
            raise InputError(move.instead)
        also = {".".join(other): setting for other, setting in move.also.items()}
        return Meant(".".join(move.path), move.node.plain(), also)

    def _is_value(self, path: KeyPath) -> bool:
        field = find(self._class, path)
        return field is not None and not field.is_section and self._has_stage(path)

    def _has_stage(self, path: KeyPath) -> bool:
        if path[0] != "stages" or len(path) == 1:
            return True
        return path[1].isdecimal() and int(path[1]) < len(self._base.config.stages)

    def _moved(self, path: KeyPath) -> KeyPath | None:
        """Return where a guide's path leads to; None where it is none, or leads to no value of ours."""
        _, moves = self._spellings.translate(Node("", ""), path)
        if not moves:
            return None
        return path if moves[0].instead else (moves[0].path if self._is_value(moves[0].path) else None)

    def _shallowest_of_schema(self, parts: KeyPath) -> dict[str, str]:
        found = [
            path
            for path, field in fields(self._class).items()
            if EACH not in path and not field.is_section and _ends_with(path, parts)
        ]
        least = min((path.count(".") for path in found), default=0)
        return {path: path for path in found if path.count(".") == least}

    def _by_spelling(self, parts: KeyPath) -> dict[str, str]:
        """Return our path → the guide's path that leads to it; a stage's only where there is no other."""
        found: dict[str, str] = {}
        for pattern, spelling in self._base.aliases.items():
            if EACH in pattern or not _ends_with(pattern, parts):
                continue
            moved = self._moved(tuple(pattern.split(".")))
            if moved is not None:
                is_said = not (isinstance(spelling, Spelling) and spelling.instead)
                found.setdefault(".".join(moved) if is_said else pattern, pattern)
        outside = {path: pattern for path, pattern in found.items() if not path.startswith("stages.")}
        return outside or found

    def _in_stages(self, path: str) -> list[str]:
        """Return where stages of the experiment set the key themselves."""
        parts = tuple(path.split("."))
        inside = parts[1:] if parts[0] == "training" else parts
        places = [("stages", str(index), *inside) for index in range(len(self._base.config.stages))]
        return [".".join(place) for place in places if self._base.tree.get(place) is not None]


def _ends_with(path: str, parts: KeyPath) -> bool:
    return tuple(path.split("."))[-len(parts) :] == parts
