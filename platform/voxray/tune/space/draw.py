"""A space's distributions as Optuna draws them, and the values an experiment gets from what was drawn."""

import difflib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from voxray.config.errors import InputError
from voxray.tune.space.conditions import holds, may_hold, names
from voxray.tune.space.config import Distribution

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

# Optuna has no normal distribution: a quantile is drawn, from here to 1 minus here (3.7 deviations).
NORMAL_TAIL = 1e-4
GOLDEN = 0.6180339887498949  # an irrational share of a range: no whole number, and no grid point by accident
MAX_WHOLE_PROBES = 16


def optuna_distribution(drawn: Distribution) -> "BaseDistribution | None":
    """Return what Optuna draws from, None for a fixed value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = getattr(drawn, drawn.kind)
    match drawn.kind:
        case "choice":
            return CategoricalDistribution([storable(choice) for choice in value])
        case "uniform" | "loguniform":
            return FloatDistribution(*value, log=drawn.kind == "loguniform")
        case "quniform":
            return FloatDistribution(*value[:2], step=value[2])
        case "int" | "logint":
            return IntDistribution(*value, log=drawn.kind == "logint")
        case "normal":
            return FloatDistribution(NORMAL_TAIL, 1 - NORMAL_TAIL)
        case _:
            return None


@dataclass(frozen=True)
class Space:
    """Everything that a search draws, in order; picklable, and free of Optuna until it draws."""

    entries: Mapping[str, Distribution]

    def draw(self, trial: "Trial") -> dict[str, Any]:
        """Draw each key whose condition holds, by Optuna's define-by-run; return the experiment's values."""
        drawn: dict[str, Any] = {}
        for path, entry in self.entries.items():
            if holds(entry.when, drawn):
                drawn[path] = _value(entry, _suggested(trial, path, entry))
        return drawn

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """Draw at random, without Optuna; return the experiment's values."""
        drawn: dict[str, Any] = {}
        for path, entry in self.entries.items():
            if holds(entry.when, drawn):
                drawn[path] = sampled(entry, rng)
        return drawn

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the experiment's values of a trial, for what Optuna drew; fixed ones are added."""
        values: dict[str, Any] = {}
        for path, entry in self.entries.items():
            if holds(entry.when, values) and (entry.kind == "fixed" or path in params):
                values[path] = _value(entry, params.get(path))
        return values

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what Optuna would have drawn for an experiment's values; keys that none is given for are
        left out.

        Raises InputError, naming the key, for a value that is not drawn, or a key whose condition fails.
        """
        params: dict[str, Any] = {}
        for path in values:
            if path not in self.entries:
                near = difflib.get_close_matches(path, self.entries, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(self.entries)}"
                raise InputError(f"{path}: is not in search.space; {hint}")
        for path, entry in self.entries.items():
            if path not in values:
                continue
            if any(key in values for key in names(entry.when)) and not may_hold(entry.when, values):
                raise InputError(f"{path}: is not drawn with these values: when {entry.when}")
            param = _param(entry, values[path])
            distribution = optuna_distribution(entry)
            if not _is_drawn(distribution, param):
                raise InputError(f"{path}: {values[path]!r} is not among what is drawn: {entry.model_dump()}")
            if distribution is not None:
                params[path] = param
        return params

    def active(self, values: Mapping[str, Any]) -> list[str]:
        """Return the keys that are drawn where these values hold, fixed ones left out."""
        known: dict[str, Any] = {}
        for path, entry in self.entries.items():
            if path in values and holds(entry.when, known):
                known[path] = values[path]
        return [p for p, entry in self.entries.items() if entry.kind != "fixed" and holds(entry.when, known)]

    def combinations(self) -> list[dict[str, Any]]:
        """Return every combination of values, as Optuna would have drawn it, the last key changing fastest.

        Raises InputError for a key that has no finite list of values.
        """
        found: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
        for path, entry in self.entries.items():
            params = _all_params(path, entry)
            longer: list[tuple[dict[str, Any], dict[str, Any]]] = []
            for values, drawn in found:
                if not holds(entry.when, values):
                    longer.append((values, drawn))
                    continue
                for param in params:
                    own = {} if entry.kind == "fixed" else {path: param}
                    longer.append(({**values, path: _value(entry, param)}, {**drawn, **own}))
            found = longer
        return [drawn for _, drawn in found]

    @property
    def varying(self) -> list[str]:
        """The paths that are drawn, in order."""
        return [path for path, entry in self.entries.items() if entry.kind != "fixed"]


def sampled(entry: Distribution, rng: random.Random) -> Any:
    """Return one value of a distribution, at random."""
    value = getattr(entry, entry.kind)
    match entry.kind:
        case "choice":
            return rng.choice(value)
        case "uniform":
            return rng.uniform(*value)
        case "loguniform":
            return min(max(math.exp(rng.uniform(*map(math.log, value))), value[0]), value[1])
        case "quniform":
            low, high, step = value
            return low + step * rng.randint(0, int((high - low) / step + 1e-9))
        case "int":
            return rng.randint(*value)
        case "logint":
            low, high = value
            drawn = math.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(drawn), low), high)
        case "normal":
            return NormalDist(*value).inv_cdf(rng.uniform(NORMAL_TAIL, 1 - NORMAL_TAIL))
        case _:
            return value


def _suggested(trial: "Trial", path: str, entry: Distribution) -> Any:
    value = getattr(entry, entry.kind)
    match entry.kind:
        case "choice":
            return trial.suggest_categorical(path, [storable(choice) for choice in value])
        case "uniform" | "loguniform":
            return trial.suggest_float(path, *value, log=entry.kind == "loguniform")
        case "quniform":
            return trial.suggest_float(path, *value[:2], step=value[2])
        case "int" | "logint":
            return trial.suggest_int(path, *value, log=entry.kind == "logint")
        case "normal":
            return trial.suggest_float(path, NORMAL_TAIL, 1 - NORMAL_TAIL)
        case _:
            return None


def _value(entry: Distribution, param: Any) -> Any:
    """Return the experiment's value for what Optuna drew."""
    value = getattr(entry, entry.kind)
    if entry.kind == "fixed":
        return value
    if entry.kind == "choice":
        return next(choice for choice in value if storable(choice) == param)
    return NormalDist(*value).inv_cdf(param) if entry.kind == "normal" else param


def _param(entry: Distribution, value: Any) -> Any:
    """Return what Optuna would have drawn for an experiment's value."""
    if entry.kind == "choice":
        return storable(value)
    if entry.kind == "normal" and isinstance(value, int | float):
        return NormalDist(*entry.normal or ()).cdf(value)
    return value


def _is_drawn(distribution: "BaseDistribution | None", param: Any) -> bool:
    from optuna.distributions import CategoricalDistribution

    if distribution is None:
        return False
    if isinstance(distribution, CategoricalDistribution):
        return any(type(choice) is type(param) and choice == param for choice in distribution.choices)
    if isinstance(param, bool) or not isinstance(param, int | float):
        return False
    return distribution._contains(distribution.to_internal_repr(param))  # pyright: ignore[reportPrivateUsage]


def _all_params(path: str, entry: Distribution) -> list[Any]:
    value = getattr(entry, entry.kind)
    match entry.kind:
        case "choice":
            return [storable(choice) for choice in value]
        case "int":
            return list(range(value[0], value[1] + 1))
        case "quniform":
            low, high, step = value
            return [low + k * step for k in range(int((high - low) / step + 1e-9) + 1)]
        case "fixed":
            return [None]
        case _:
            raise InputError(
                f"{path}: {entry.kind} has no end of values, and sampler brute_force tries them all; "
                "write choice, int or quniform, or take another sampler"
            )


def storable(choice: Any) -> str | int | float | bool | None:
    """Return a choice as Optuna can keep it: a scalar as it is, a list or a map as JSON text."""
    return choice if choice is None or isinstance(choice, str | int | float | bool) else json.dumps(choice)


def probes(drawn: Distribution) -> list[Any]:
    """Return values that the experiment must accept if it is to accept all: ends, choices, some between."""
    value = getattr(drawn, drawn.kind)
    match drawn.kind:
        case "choice":
            return list(value)
        case "uniform" | "loguniform":
            low, high = value
            return [low, high, low + GOLDEN * (high - low)]
        case "quniform":
            low, high, step = value
            return [low, low + step, low + step * int((high - low) / step + 1e-9)]
        case "int" | "logint":
            low, high = value
            stride = max(1, (high - low) // MAX_WHOLE_PROBES)
            return sorted({*range(low, high + 1, stride), high})
        case "normal":
            normal = NormalDist(*value)
            return [normal.inv_cdf(quantile) for quantile in (NORMAL_TAIL, GOLDEN, 1 - NORMAL_TAIL)]
        case _:
            return [value]
