"""What a page is made of: parts (a run or a study each) with sections of blocks. Plain values, no HTML."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from voxray.core.figures import Figure

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Card:
    """One key number with its name, and a word about it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below named columns. With `fold` the table opens at a click on that text."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    caption: str = ""
    fold: str = ""

    def is_numeric(self, column: int) -> bool:
        """Tell whether a column holds numbers only and so stands right-aligned."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)

    def cell(self, row: int, column: int) -> str:
        """Return a cell's text. Fractions that share a column and a magnitude share three decimals too."""
        value = self.rows[row][column]
        floats = [
            abs(cells[column]) for cells in self.rows if isinstance(cells[column], float) and cells[column]
        ]
        if (
            isinstance(value, float)
            and math.isfinite(value)
            and 0.01 <= min(floats, default=1) <= max(floats, default=1) < 100
        ):
            return f"{value:.3f}"
        return number(value)


@dataclass(frozen=True)
class Text:
    """A sentence, and the command to type where there is one."""

    text: str
    command: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Code:
    """A file's text or a command, to be copied."""

    text: str
    title: str = ""


Block = Table | Text | Code | Figure | tuple[Card, ...]


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class Part:
    """One run, study or ablation on the page."""

    kind: Literal["run", "study", "ablation"]
    name: str
    task: str
    folder: str
    status: str
    tone: Tone
    about: dict[str, str]  # description, hypothesis, expected: those that the user wrote
    tags: tuple[str, ...]
    cards: tuple[Card, ...]
    sections: list[Section] = field(default_factory=list)


def number(value: Any) -> str:
    """Return a value as the page shows it: four significant digits, a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def interval(low: Any, high: Any) -> str:
    """Return an interval's ends with three decimals each, of small ones as many as they need."""
    if low is None or high is None:
        return "–"
    if max(abs(low), abs(high)) < 0.01:
        return f"{number(low)} – {number(high)}"
    return f"{low:.3f} – {high:.3f}"


def decimals(value: float) -> str:
    """Return a number with three decimals, a small one with as many as it needs."""
    return f"{value:.3f}" if abs(value) >= 0.01 else number(value)


def duration(seconds: float | None) -> str:
    """Return seconds as a person reads them: `41 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours} h {minutes_rest:02d} min" if hours else f"{minutes} min {rest:02d} s"


def about_of(values: dict[str, Any]) -> dict[str, str]:
    """Return what the user wrote about an experiment or a space, in the order in which it is read."""
    return {key: str(values[key]) for key in ("description", "hypothesis", "expected") if values.get(key)}
