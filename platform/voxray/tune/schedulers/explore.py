"""PBT's explore step: values near another member's, each inside its distribution."""

import math
import random
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from voxray.tune.space.conditions import holds
from voxray.tune.space.config import Distribution
from voxray.tune.space.draw import NORMAL_TAIL

WHOLE = ("int", "logint")


def explore(
    space: Mapping[str, Distribution],
    values: Mapping[str, Any],
    chance: random.Random,
    resample: float,
    factors: tuple[float, float],
) -> dict[str, Any]:
    """Return new values for `values` (dotted path → value), in the space's order.

    With the chance `resample` a value is drawn anew, else it is perturbed (arXiv:1711.09846, section 4): a
    number is multiplied by one of the factors and kept inside its range, a choice moves to the one before or
    after it. A whole number, or one of a grid, moves by at least one step. Keys are drawn, kept or left out
    as `when` says.
    """
    found: dict[str, Any] = {}
    for path, entry in space.items():
        if not holds(entry.when, found):
            continue
        if entry.kind == "fixed":
            found[path] = entry.fixed
        elif path not in values or chance.random() < resample:
            found[path] = drawn(entry, chance)
        else:
            factor = factors[chance.random() < 0.5]
            found[path] = moved(entry, values[path], factor)
    return found


def drawn(entry: Distribution, chance: random.Random) -> Any:
    """Draw a value of a distribution that varies."""
    value: Any = getattr(entry, entry.kind)
    if entry.kind == "choice":
        return value[int(chance.random() * len(value))]
    if entry.kind == "normal":
        return NormalDist(*value).inv_cdf(NORMAL_TAIL + chance.random() * (1 - 2 * NORMAL_TAIL))
    low, high = value[:2]
    if entry.kind == "loguniform":
        return _inside(math.exp(chance.uniform(math.log(low), math.log(high))), low, high)
    if entry.kind == "logint":
        # Each whole number has the half-open unit around it, as Optuna's has.
        number = math.exp(chance.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return int(_inside(round(number), low, high))
    if entry.kind == "int":
        return low + int(chance.random() * (high - low + 1))
    if entry.kind == "quniform":
        return low + int(chance.random() * (_num_steps(value) + 1)) * value[2]
    return chance.uniform(low, high)


def moved(entry: Distribution, old: Any, factor: float) -> Any:
    """Return a value near `old`: it, times `factor`, or its neighbour on that side (up where factor > 1)."""
    value: Any = getattr(entry, entry.kind)
    if entry.kind == "choice":
        return _neighbour(value, old, factor)
    if entry.kind == "normal":
        normal = NormalDist(*value)
        return _inside(old * factor, normal.inv_cdf(NORMAL_TAIL), normal.inv_cdf(1 - NORMAL_TAIL))
    low, high = value[:2]
    if entry.kind in WHOLE:
        return int(_inside(_at_least_one(round(old * factor), old, factor), low, high))
    if entry.kind == "quniform":
        step = value[2]
        before = round((old - low) / step)
        after = _at_least_one(round((old * factor - low) / step), before, factor)
        return low + _inside(after, 0, _num_steps(value)) * step
    return _inside(old * factor, low, high)


def _neighbour(choices: Sequence[Any], old: Any, factor: float) -> Any:
    places = [place for place, choice in enumerate(choices) if choice == old]
    if not places:  # a value from outside the space, such as an earlier study's
        return old
    return choices[int(_inside(places[0] + (1 if factor > 1 else -1), 0, len(choices) - 1))]


def _at_least_one(new: int, old: int, factor: float) -> int:
    return new if new != old else old + (1 if factor > 1 else -1)


def _num_steps(grid: Sequence[float]) -> int:
    low, high, step = grid
    return int((high - low) / step + 1e-9)


def _inside(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
