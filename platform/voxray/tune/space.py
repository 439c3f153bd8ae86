"""A space's distributions as Optuna draws them, and the values an experiment gets from what was drawn."""

import json
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from voxray.tune.config import Distribution

if TYPE_CHECKING:
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


def optuna_distributions(space: Mapping[str, Distribution]) -> dict[str, "BaseDistribution"]:
    """Return Optuna's distribution of every path that varies."""
    found = {path: optuna_distribution(drawn) for path, drawn in space.items()}
    return {path: distribution for path, distribution in found.items() if distribution is not None}


def experiment_values(space: Mapping[str, Distribution], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted path → value of the experiment, for what Optuna drew; fixed values are added."""
    return {path: _experiment_value(drawn, params.get(path)) for path, drawn in space.items()}


def _experiment_value(drawn: Distribution, param: Any) -> Any:
    value = getattr(drawn, drawn.kind)
    if drawn.kind == "fixed":
        return value
    if drawn.kind == "choice":
        return next(choice for choice in value if storable(choice) == param)
    return NormalDist(*value).inv_cdf(param) if drawn.kind == "normal" else param


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
