"""What a parameter of a W&B sweep is drawn from, as one of our distributions.

The meaning of W&B's distributions is that of its documentation ("Sweep configuration options") and, where
that is silent, of the code behind it (github.com/wandb/sweeps, params.py and grid_search.py).
"""

# What a YAML or JSON value holds has no static type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from voxray.config.errors import InputError
from voxray.config.tree import Node, show

_RANGE, _NORMAL = ("min", "max"), ("mu", "sigma")
# W&B's distribution → the keys beside `distribution` that it knows.
KEYS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": _RANGE,
    "uniform": _RANGE,
    "q_uniform": (*_RANGE, "q"),
    "log_uniform": _RANGE,
    "log_uniform_values": _RANGE,
    "q_log_uniform": (*_RANGE, "q"),
    "q_log_uniform_values": (*_RANGE, "q"),
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _NORMAL,
    "q_normal": (*_NORMAL, "q"),
    "log_normal": _NORMAL,
    "q_log_normal": (*_NORMAL, "q"),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
}
_DISCRETE = ("constant", "categorical", "categorical_w_probabilities", "int_uniform", "q_uniform")
_DEFAULTS = {"mu": 0, "sigma": 1, "q": 1, "a": 1, "b": 1}
_TWO_DEVIATIONS = 2.0


@dataclass(frozen=True)
class Drawn:
    """One of our distributions: its key and what stands under it; sentences about what differs from W&B's."""

    kind: str
    value: Any
    notes: tuple[str, ...] = ()

    def examples(self) -> list[Any]:
        """Return every value of a choice or of what is fixed, one of a range."""
        return (
            [self.value]
            if self.kind == "fixed"
            else list(self.value if self.kind == "choice" else self.value[:1])
        )

    def num_values(self) -> int:
        """Return how many values a discrete distribution has."""
        match self.kind:
            case "choice":
                return len(self.value)
            case "int":
                return self.value[1] - self.value[0] + 1
            case _:
                assert self.kind == "fixed"
                return 1


def read_distribution(parameter: Node, grid: bool) -> Drawn:
    """Return what a sweep's parameter is drawn from; `grid`: the method is grid search.

    Raises InputError, without the place, with all that is wrong with it.
    """
    if not isinstance(parameter.value, dict):
        raise InputError(
            f"{show(parameter.plain())}: a parameter is a map; write `value: {show(parameter.plain())}`"
        )
    name = _name(parameter)
    problems = [
        _unknown(key, name) for key in parameter.value if key != "distribution" and key not in KEYS[name]
    ]
    if grid and name not in _DISCRETE:
        problems.append(
            f"method: grid tries every value, and {name} has no end of them; write `values: [...]`, or "
            "method: random"
        )
    if problems:
        raise InputError(*problems)
    return _READERS[name](_Parameter(parameter, name), grid)


def _name(parameter: Node) -> str:
    """Return W&B's name of the distribution: as written, else by the keys that are there."""
    written = parameter.get(("distribution",))
    if written is not None:
        name = written.plain()
        if name not in KEYS:
            near = difflib.get_close_matches(str(name), KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(KEYS)}"
            raise InputError(f"distribution: {show(name)} is none of W&B's; {hint}")
        return name
    if parameter.get(("value",)) is not None:
        return "constant"
    if parameter.get(("values",)) is not None:
        return "categorical"
    low, high = parameter.get(("min",)), parameter.get(("max",))
    if low is None or high is None:
        raise InputError("says not what it is drawn from; write value, values, or min and max")
    return "int_uniform" if type(low.value) is int and type(high.value) is int else "uniform"


def _unknown(key: str, name: str) -> str:
    near = difflib.get_close_matches(key, (*KEYS[name], "distribution"), 1)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(KEYS[name])}"
    return f"{key} is no key of distribution {name}; {hint}"


@dataclass(frozen=True)
class _Parameter:
    node: Node
    name: str

    def number(self, key: str) -> float:
        """Return a number. Raises InputError where it is missing, or something else."""
        node = self.node.get((key,))
        if node is None:
            if key not in _DEFAULTS:
                raise InputError(f"{key} is missing: {self.name} needs {' and '.join(KEYS[self.name])}")
            return _DEFAULTS[key]
        value = node.value
        if type(value) not in (int, float) or not math.isfinite(float(value)):  # type: ignore[arg-type]
            raise InputError(f"{key}: {show(node.plain())} is not a finite number")
        assert isinstance(value, int | float)
        return value

    def range(self) -> tuple[float, float]:
        """Return min and max, in order."""
        low, high = self.number("min"), self.number("max")
        if low > high:
            raise InputError(f"min {low:g} is above max {high:g}; exchange them")
        return low, high

    def step(self) -> float:
        """Return q, above 0."""
        step = self.number("q")
        if step <= 0:
            raise InputError(f"q: {step:g} must be above 0")
        return step

    def positive_range(self) -> tuple[float, float]:
        """Return min and max, both with a logarithm."""
        low, high = self.range()
        if low <= 0:
            raise InputError(f"min: {low:g} has no logarithm; use a min above 0")
        return low, high

    def values(self) -> list[Any]:
        node = self.node.get(("values",))
        if node is None or not isinstance(node.value, list) or not node.value:
            raise InputError("values must be a list of at least one value, e.g. `values: [16, 32]`")
        return node.plain()


def _constant(parameter: _Parameter, grid: bool) -> Drawn:
    node = parameter.node.get(("value",))
    if node is None:
        raise InputError("value is missing: constant needs it")
    return Drawn("fixed", node.plain())


def _categorical(parameter: _Parameter, grid: bool) -> Drawn:
    values = parameter.values()
    node = parameter.node.get(("probabilities",))
    if node is None:
        return Drawn("choice", values)
    if grid:
        raise InputError("probabilities: grid search tries every value once; take them out")
    weights = node.plain()
    if not isinstance(weights, list) or len(weights) != len(values) or not all(map(_is_weight, weights)):
        raise InputError(f"probabilities must be {len(values)} numbers of 0 or more, one for each of values")
    kept = [value for value, weight in zip(values, weights, strict=True) if weight > 0]
    if not kept:
        raise InputError("probabilities are all 0; give at least one value a chance")
    notes: list[str] = []
    if len(kept) < len(values):
        notes.append("values of probability 0 are left out")
    if len({weight for weight in weights if weight > 0}) > 1:
        notes.append("the probabilities are not kept: each value is drawn alike")
    return Drawn("choice", kept, tuple(notes))


def _is_weight(weight: Any) -> bool:
    return type(weight) in (int, float) and 0 <= weight < math.inf


def _uniform(parameter: _Parameter, grid: bool) -> Drawn:
    return _between("uniform", *parameter.range())


def _int_uniform(parameter: _Parameter, grid: bool) -> Drawn:
    low, high = parameter.range()
    if low != int(low) or high != int(high):
        raise InputError(
            f"int_uniform draws whole numbers, and min {low:g} and max {high:g} are not both whole"
        )
    return _between("int", int(low), int(high))


def _q_uniform(parameter: _Parameter, grid: bool) -> Drawn:
    low, high = parameter.range()
    step = parameter.step()
    if grid:  # as numpy.arange(min, max, q): min + k·q, without max
        count = math.ceil((high - low) / step - 1e-9)
        if count < 1:
            raise InputError(f"q_uniform has no value from min {low:g} up to below max {high:g}")
        exact = Decimal(str(low)), Decimal(str(step))
        values = [_plain(exact[0] + index * exact[1], (low, step)) for index in range(count)]
        return Drawn("choice", values, ("grid search at W&B takes min, min + q, … up to below max",))
    first, last = round(low / step), round(high / step)
    ends = [_plain(Decimal(str(step)) * index, (step,)) for index in (first, last)]
    ends_weigh_less = (
        "W&B rounds to multiples of q, so its two ends come half as often; here all are alike",
    )
    if last - first < 2:  # nothing between the two ends
        return Drawn("choice", ends) if last > first else Drawn("fixed", ends[0])
    if step == 1:
        return Drawn("int", ends, ends_weigh_less)
    return Drawn("quniform", [*ends, step], ends_weigh_less)


def _plain(number: Decimal, made_of: Sequence[float]) -> float:
    """Return a product without the rounding of binary fractions, whole where all that it is made of is."""
    return int(number) if all(type(part) is int for part in made_of) else float(number)


def _log_uniform(parameter: _Parameter, grid: bool) -> Drawn:
    low, high = parameter.range()
    return _exponents(parameter.name, low, high)


def _log_uniform_values(parameter: _Parameter, grid: bool) -> Drawn:
    return _between("loguniform", *parameter.positive_range())


def _inv_log_uniform(parameter: _Parameter, grid: bool) -> Drawn:
    low, high = parameter.range()  # of log(1/x) = −log(x)
    return _exponents(parameter.name, -high, -low)


def _exponents(name: str, low: float, high: float) -> Drawn:
    bounds = _exp(low), _exp(high)
    note = (
        f"{name}'s min and max are exponents of e: it is drawn from {bounds[0]:.4g} to {bounds[1]:.4g} "
        f"(for values as they stand there is {name}_values)"
    )
    drawn = _between("loguniform", *bounds)
    return Drawn(drawn.kind, drawn.value, (note,))


def _exp(exponent: float) -> float:
    try:
        value = math.exp(exponent)
    except OverflowError:
        value = math.inf
    if value in (0.0, math.inf):
        raise InputError(
            f"e to the power of {exponent:g} is no number; for plain values write log_uniform_values"
        )
    return value


def _q_log_uniform(parameter: _Parameter, grid: bool) -> Drawn:
    low, high = parameter.range()
    return _whole_logarithmic(parameter, _exp(low), _exp(high))


def _q_log_uniform_values(parameter: _Parameter, grid: bool) -> Drawn:
    return _whole_logarithmic(parameter, *parameter.positive_range())


def _whole_logarithmic(parameter: _Parameter, low: float, high: float) -> Drawn:
    step = parameter.step()
    if step != 1:
        raise InputError(
            f"{parameter.name} with q: {step:g} has no equivalent here; write q: 1 (whole numbers), "
            f"log_uniform_values with min: {low:.4g} and max: {high:.4g}, or values"
        )
    if round(low) < 1:
        raise InputError(
            f"{parameter.name} draws 0 too, as {low:.4g} is rounded, and a logarithmic range of whole "
            "numbers begins at 1; raise min"
        )
    return _between("logint", round(low), round(high))


def _normal(parameter: _Parameter, grid: bool) -> Drawn:
    mean, deviation = parameter.number("mu"), _deviation(parameter)
    if deviation == 0:
        return Drawn("fixed", mean)
    return Drawn("normal", [mean, deviation], ("normal is cut at 3.7 standard deviations here",))


def _deviation(parameter: _Parameter) -> float:
    deviation = parameter.number("sigma")
    if deviation < 0:
        raise InputError(f"sigma: {deviation:g} must be 0 or more")
    return deviation


def _q_normal(parameter: _Parameter, grid: bool) -> Drawn:
    raise InputError("q_normal has no equivalent here; write normal (not rounded), q_uniform, or values")


def _log_normal(parameter: _Parameter, grid: bool) -> Drawn:
    mean, reach = parameter.number("mu"), _TWO_DEVIATIONS * _deviation(parameter)
    low, high = _exp(mean - reach), _exp(mean + reach)
    raise InputError(
        f"{parameter.name} has no equivalent here; write log_uniform_values with min: {low:.4g} and max: "
        f"{high:.4g}, which hold 95 % of it"
    )


def _beta(parameter: _Parameter, grid: bool) -> Drawn:
    if parameter.name == "beta" and parameter.number("a") == parameter.number("b") == 1:
        return Drawn("uniform", [0.0, 1.0])  # what the beta distribution is there
    raise InputError(f"{parameter.name} has no equivalent here; write uniform with min and max, or values")


def _between(kind: str, low: float, high: float) -> Drawn:
    return Drawn("fixed", low) if low == high else Drawn(kind, [low, high])


_READERS: dict[str, Callable[[_Parameter, bool], Drawn]] = {
    "constant": _constant,
    "categorical": _categorical,
    "categorical_w_probabilities": _categorical,
    "int_uniform": _int_uniform,
    "uniform": _uniform,
    "q_uniform": _q_uniform,
    "log_uniform": _log_uniform,
    "log_uniform_values": _log_uniform_values,
    "q_log_uniform": _q_log_uniform,
    "q_log_uniform_values": _q_log_uniform_values,
    "inv_log_uniform": _inv_log_uniform,
    "inv_log_uniform_values": _log_uniform_values,  # log(1/x) from log(1/max) to log(1/min): the same
    "normal": _normal,
    "q_normal": _q_normal,
    "log_normal": _log_normal,
    "q_log_normal": _log_normal,
    "beta": _beta,
    "q_beta": _beta,
}
