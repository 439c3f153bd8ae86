"""What a file under search_spaces/ holds: an experiment, an objective, how each of its values is drawn."""

import builtins
import itertools
from typing import Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from voxray.config.section import Section


class Distribution(Section, frozen=True):
    """How one value is drawn: exactly one of these keys. Ranges include both ends."""

    choice: tuple[Any, ...] | None = Field(default=None, description="one of the values")
    uniform: tuple[float, ...] | None = Field(default=None, description="[low, high]")
    loguniform: tuple[float, ...] | None = Field(
        default=None, description="[low, high], uniform in the logarithm"
    )
    quniform: tuple[float, ...] | None = Field(default=None, description="[low, high, step]: low + k·step")
    int: tuple[builtins.int, ...] | None = Field(default=None, description="[low, high], whole numbers")
    logint: tuple[builtins.int, ...] | None = Field(
        default=None, description="[low, high], uniform in the logarithm"
    )
    normal: tuple[float, ...] | None = Field(
        default=None,
        description="[mean, standard deviation], cut at the quantiles 1e-4 and 1 − 1e-4 (3.7 deviations)",
    )
    fixed: Any = Field(default=None, description="the same value in every trial")

    @property
    def kind(self) -> str:
        """The key that is set."""
        return next(iter(self.model_fields_set))

    @model_serializer
    def _the_one_key(self) -> dict[str, Any]:
        return {self.kind: getattr(self, self.kind)}

    @model_validator(mode="after")
    def _one_key_and_a_range_that_holds_values(self) -> Self:
        if len(self.model_fields_set) != 1:
            found = ", ".join(sorted(self.model_fields_set)) or "none"
            raise ValueError(f"needs exactly one of {', '.join(type(self).model_fields)}; found {found}")
        if self.kind != "fixed" and getattr(self, self.kind) is None:
            raise ValueError(f"{self.kind} has no value; write `{self.kind}: [...]`")
        value: Any = getattr(self, self.kind)
        if self.kind == "choice":
            _check_choices(value)
        elif self.kind == "normal":
            _check_normal(value)
        elif self.kind != "fixed":
            _check_range(self.kind, value)
        return self


def _check_choices(choices: tuple[Any, ...]) -> None:
    if not choices:
        raise ValueError("choice: [] leaves nothing to choose; list at least one value")
    for one, other in itertools.combinations(choices, 2):
        if one == other:
            raise ValueError(f"choice: {one!r} and {other!r} are the same value; keep one of them")


def _check_normal(numbers: tuple[float, ...]) -> None:
    if len(numbers) != 2 or numbers[1] <= 0:
        raise ValueError(f"normal: {list(numbers)} must be [mean, standard deviation], the second above 0")


def _check_range(kind: str, bounds: tuple[float, ...]) -> None:
    wanted = "[low, high, step]" if kind == "quniform" else "[low, high]"
    if len(bounds) != wanted.count(",") + 1:
        raise ValueError(f"{kind}: {list(bounds)} has {len(bounds)} numbers; write {wanted}")
    low, high = bounds[:2]
    if low > high:
        raise ValueError(f"{kind}: low {low} is above high {high}; write [{high}, {low}]")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"{kind}: low {low} has no logarithm; use a low above 0, or `{kind[3:]}`")
    if kind == "quniform" and not 0 < bounds[2] <= high - low:
        raise ValueError(f"quniform: step {bounds[2]} must be above 0 and at most high − low = {high - low}")


class ObjectiveConfig(Section, frozen=True):
    """What a search looks at."""

    metric: str = Field(description="a name that the task reports, e.g. val/auroc")
    mode: Literal["min", "max"] = Field(description="min: lower is better; max: higher is better")


class SamplerConfig(Section, frozen=True):
    """What suggests the next trial's values. Trial i draws from hash(seed, i), whatever ran before."""

    name: Literal["tpe", "random"] = "tpe"
    seed: int = Field(default=0, ge=0)
    startup_trials: int = Field(
        default=10, ge=1, description="tpe: trials drawn at random before it learns from results"
    )


class SearchConfig(Section, frozen=True):
    """How many trials, what suggests them, and from where."""

    sampler: SamplerConfig = SamplerConfig()
    trials: int = Field(ge=1)
    max_concurrent: int | None = Field(
        default=None, ge=1, description="trials at a time; default: as many as fit"
    )
    space: dict[str, Distribution] = Field(
        min_length=1, description="dotted path of the experiment → distribution"
    )


class SpaceConfig(Section, frozen=True):
    """A search over one experiment (a file under search_spaces/)."""

    experiment_name: str = Field(
        default="", pattern=r"^[A-Za-z0-9._-]*$", description="the study's; default: the file's name"
    )
    description: str = ""
    hypothesis: str = ""
    expected: str = ""
    tags: tuple[str, ...] = ()
    experiment: str = Field(description="a path relative to this file, or an experiment's name")
    objective: ObjectiveConfig
    search: SearchConfig
