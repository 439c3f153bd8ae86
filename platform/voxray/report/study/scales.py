"""Where a value stands on an axis: numbers, logarithms of numbers, or choices at even distances."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from voxray.report.page import number

NUM_TICKS, LONGEST_TICK = 5, 14
MISSING = object()  # in the place of a value that was not drawn: null is a value
Tick = tuple[float, str]


@dataclass(frozen=True)
class Scale:
    """One key's, or one metric's, axis."""

    name: str
    kind: Literal["linear", "log", "choice"]
    choices: tuple[Any, ...] = ()

    def at(self, value: Any) -> float | None:
        """Return a value's place: itself, its log10, or its choice's number. None: it has no place."""
        if self.kind == "choice":
            return float(self.choices.index(value)) if value in self.choices else None
        if value is None or value is MISSING:
            return None
        place = math.log10(value) if self.kind == "log" else float(value)
        return place if math.isfinite(place) else None

    def shares(self, values: Sequence[Any]) -> list[float | None]:
        """Return the places of values from 0, the lowest, to 1; in the middle where all are one."""
        places = [self.at(value) for value in values]
        low, high = self.ends(places)
        return [None if place is None else _share(place, low, high) for place in places]

    def ticks(self, values: Sequence[Any]) -> list[Tick]:
        """Return (share of the axis, text) of the choices, or of a few numbers between the ends."""
        low, high = self.ends([self.at(value) for value in values])
        if self.kind == "choice":
            texts = [html.escape(_short(number(choice))) for choice in self.choices]
            return [(_share(i, low, high), text) for i, text in enumerate(texts)]
        if low == high:
            return [(0.5, self._text(low))]
        shares = [k / (NUM_TICKS - 1) for k in range(NUM_TICKS)]
        return [(share, self._text(low + share * (high - low))) for share in shares]

    def plotly_axis(self) -> dict[str, Any]:
        """Return how plotly draws this axis; a choice stands at its number."""
        title = {"title": {"text": two_lines(self.name)}}
        if self.kind == "choice":
            texts = [html.escape(_short(number(choice))) for choice in self.choices]
            return title | {
                "tickvals": list(range(len(texts))),
                "ticktext": texts,
                "range": [-0.5, len(texts) - 0.5],
            }
        return title | ({"type": "log", "exponentformat": "power"} if self.kind == "log" else {})

    def plotly_value(self, value: Any) -> float | None:
        """Return what plotly wants of a value: it takes the logarithm itself."""
        place = self.at(value)
        return float(value) if self.kind == "log" and place is not None else place

    def ends(self, places: Sequence[float | None]) -> tuple[float, float]:
        """Return the lowest and the highest place."""
        if self.kind == "choice":
            return 0.0, float(len(self.choices) - 1)
        known = [place for place in places if place is not None]
        return min(known, default=0.0), max(known, default=0.0)

    def _text(self, place: float) -> str:
        return f"{10**place if self.kind == 'log' else place:.3g}"


def scale_of(path: str, declared: Any, values: Sequence[Any]) -> Scale:
    """Return the axis of a key: as its distribution says, else by the values that were drawn."""
    drawn = declared if isinstance(declared, dict) else {}
    if drawn.get("choice"):
        return Scale(path, "choice", tuple(_storable(choice) for choice in drawn["choice"]))
    if drawn.get("loguniform") or drawn.get("logint"):
        return Scale(path, "log")
    known = list(dict.fromkeys(value for value in values if value is not MISSING))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return Scale(path, "linear")
    return Scale(path, "choice", tuple(sorted(known, key=str)))


def two_lines(path: str) -> str:
    """Return a dotted path over two lines, so that neighbours do not touch."""
    head, _, tail = path.rpartition(".")
    return f"{html.escape(head)}.<br>{html.escape(tail)}" if head else html.escape(tail)


def _share(place: float, low: float, high: float) -> float:
    return (place - low) / (high - low) if high > low else 0.5


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TICK else text[: LONGEST_TICK - 1] + "…"


def _storable(choice: Any) -> Any:
    """Return a choice as the journal holds it: lists and maps are JSON text there."""
    return json.dumps(choice) if isinstance(choice, list | dict) else choice
