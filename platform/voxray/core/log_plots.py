"""Lines over a run's updates, drawn from the records of its log: plain plotly values. No torch here."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from voxray.core.figures import GREY

Record = Mapping[str, Any]

# A browser draws this many points of a line at once; a longer log is thinned and the caption says so.
MAX_POINTS = 2000


def over_updates(
    traces: list[dict[str, Any]], title: str, steps: Sequence[Record], *, from_zero: bool = False
) -> dict[str, Any]:
    """Return a plotly figure whose x axis counts updates, with a line where a new stage begins."""
    starts = _stage_starts(steps)
    return {
        "data": traces,
        "layout": {
            "height": 320,
            "xaxis": {"title": {"text": "update"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": title}} | ({"rangemode": "tozero"} if from_zero else {}),
            "shapes": [
                {
                    "type": "line",
                    "x0": x,
                    "x1": x,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": GREY, "width": 1},
                }
                for _, x in starts
            ],
            "annotations": [
                {
                    "x": x,
                    "y": 1,
                    "yref": "paper",
                    "text": html.escape(name),
                    "textangle": -90,  # beside its line: the names of short stages would cover each other
                    "font": {"size": 11},
                    "showarrow": False,
                    "xanchor": "left",
                    "yanchor": "top",
                }
                for name, x in starts
            ],
        },
    }


def log_line(
    name: str,
    records: Sequence[Record],
    key: str,
    color: str,
    hover: str,
    *,
    width: float = 2,
    markers: bool = False,
) -> dict[str, Any] | None:
    """Return a trace of `key` over updates, with gaps where it is undefined; None where it always is."""
    points = [
        (record["step"], record[key]) for record in _thin(records) if key in record and "step" in record
    ]
    if not any(is_number(y) for _, y in points):
        return None
    return {
        "type": "scatter",
        "name": name,
        "mode": "lines+markers" if markers or len(points) == 1 else "lines",
        "x": [x for x, _ in points],
        "y": [y if is_number(y) else None for _, y in points],
        "line": {"color": color, "width": width},
        "hovertemplate": f"update %{{x}}: {hover}<extra></extra>",
    }


def _stage_starts(steps: Sequence[Record]) -> list[tuple[str, Any]]:
    """Return name and first update of each stage; empty where there is one stage only."""
    first: dict[str, Any] = {}
    for record in steps:
        first.setdefault(str(record.get("stage", "")), record.get("step"))
    return list(first.items()) if len(first) > 1 else []


def _thin(records: Sequence[Record]) -> Sequence[Record]:
    stride = -(-len(records) // MAX_POINTS)
    return records if stride <= 1 else [*records[:-1:stride], records[-1]]


def thinned(records: Sequence[Record]) -> str:
    """Return the sentence for a caption where `log_line` leaves records out; else nothing."""
    stride = -(-len(records) // MAX_POINTS)
    return f" Every {stride}th of {len(records):,} logged updates is drawn." if stride > 1 else ""


def is_number(value: Any) -> bool:
    """Tell whether a record's value is one number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
