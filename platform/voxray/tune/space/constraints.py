"""`constraints:`: what must hold of a trial's values before it starts, and of its metrics when it ended."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxray.config.errors import InputError
from voxray.config.expression import Expression
from voxray.tune.space.conditions import KEY, evaluated, keys_of, parsed

METRIC = "metric"


@dataclass(frozen=True)
class Constraint:
    """One expression: of keys of the experiment alone, or of `metric('…')` too."""

    text: str
    expression: Expression

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the experiment that it names."""
        return keys_of(self.expression)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it names; none: it is looked at before a trial starts."""
        return self.expression.arguments(METRIC)

    def excess(self, values: Callable[[str], Any], metrics: Mapping[str, float] | None = None) -> float:
        """Return by how much it is violated; 0 or less where it holds.

        Raises KeyError for a metric that is not there.
        """
        return self.expression.excess(values, {KEY: values, METRIC: (metrics or {}).__getitem__})

    def holds(self, values: Callable[[str], Any]) -> bool:
        """Return whether a constraint of keys alone holds."""
        return bool(evaluated(self.expression, values))


def read_constraints(texts: Sequence[str], where: Callable[[int], str]) -> tuple[Constraint, ...]:
    """Parse constraints; `where` names the place of each. Raises InputError with all that is wrong."""
    found: list[Constraint] = []
    problems: list[str] = []
    for number, text in enumerate(texts):
        try:
            constraint = Constraint(text, parsed(text, where(number), (METRIC,)))
            if not (constraint.keys or constraint.metrics):
                raise InputError(f"{where(number)}: '{text}' names no key and no metric('…')")
            found.append(constraint)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return tuple(found)


def unknown_metric(name: str, known: Sequence[str]) -> str:
    """Return the sentence about a metric that is never reported, empty where it is."""
    if name in known:
        return ""
    near = difflib.get_close_matches(name, known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"there is {', '.join(known)}"
