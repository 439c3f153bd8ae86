"""How one value of a search is drawn, and when: `{uniform: [0, 1], when: {training.optimizer: sgd}}`."""

import builtins
import itertools
from typing import Any, Self

from pydantic import Field, model_serializer, model_validator

from voxray.config.section import Section


class Distribution(Section, frozen=True):
    """How one value is drawn: exactly one of the first keys. Ranges include both ends."""

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
    when: dict[str, Any] | str = Field(
        default={},
        description="earlier key → the value, or a list of values, with which this one is drawn; or an "
        "expression of earlier keys",
    )

    @property
    def kind(self) -> str:
        """The key that says how it is drawn."""
        return next(iter(self.model_fields_set - {"when"}))

    @model_serializer
    def _what_was_set(self) -> dict[str, Any]:
        return {self.kind: getattr(self, self.kind), **({"when": self.when} if self.when else {})}

    @model_validator(mode="after")
    def _one_key_and_a_range_that_holds_values(self) -> Self:
        kinds = self.model_fields_set - {"when"}
        if len(kinds) != 1:
            there_are = [name for name in type(self).model_fields if name != "when"]
            found = ", ".join(sorted(kinds)) or "none"
            raise ValueError(f"needs exactly one of {', '.join(there_are)}; found {found}")
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
