"""Read a guide's whole file (its own sections, no `task`) through a task's alias table into our config."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxray.config.errors import InputError
from voxray.config.files import read_layers
from voxray.config.resolve import Building, Resolved
from voxray.config.schema import find
from voxray.config.spellings import Spellings
from voxray.config.tree import Node
from voxray.core.experiment import named_after_file
from voxray.core.registry import TASKS, aliases, config_class, own_aliases
from voxray.core.run_config import RunConfig


@dataclass(frozen=True)
class Unmapped:
    """A key of a guide's file that has no place in our config, and why."""

    key: str
    node: Node
    reason: str


@dataclass(frozen=True)
class Guide:
    """A guide's file in our words, and what of it could not be said in them."""

    resolved: Resolved[RunConfig]
    unmapped: list[Unmapped]


def read_guide(file: Path, overrides: Sequence[str] = ()) -> Guide | None:
    """Return a guide's file in our words; None for a file with a `task`, or without any key of a guide.

    Raises InputError for a file that cannot be read and for overrides that are wrong.
    """
    layers, problems = read_layers(file)
    task = _task_that_knows(layers)
    if task is None:
        return None
    building = Building(
        config_class(task), Node.of({"task": task}, "the guide's keys"), aliases(task), (), problems
    )
    for layer in layers:
        building.add_layer(layer)
    unmapped = [Unmapped(move.given, move.node, move.instead) for move in building.unsaid]
    building.unsaid.clear()
    for problem in building.check()[1]:
        node = building.tree.get(problem.path)
        if node is None or not problem.path:
            raise InputError(str(problem))
        known = find(building.config_class, problem.path) is not None
        unmapped += [
            Unmapped(".".join(path), leaf, problem.text if known else f"no key of {task}")
            for path, leaf in node.leaves(problem.path)
        ]
        building.tree = building.tree.without(problem.path)
    for text in overrides:
        building.add_override(text)
    return Guide(named_after_file(building.finish(file), file), unmapped)


def _task_that_knows(layers: Sequence[Node]) -> str | None:
    """Return the task whose own spellings know most of the file's keys; None for a file of ours."""
    if any(layer.get(("task",)) for layer in layers):
        return None
    known = {task: _num_known(layers, Spellings(own_aliases(task))) for task in TASKS}
    best = max(known, key=known.__getitem__)
    return best if known[best] else None


def _num_known(layers: Sequence[Node], spellings: Spellings) -> int:
    return sum(len(spellings.translate(layer, ())[1]) for layer in layers)
