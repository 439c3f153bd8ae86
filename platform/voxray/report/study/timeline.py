"""What ran when: each trial as a bar in a lane, so that idle gaps are seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from voxray.core.figures import GREY, Figure
from voxray.report.page import duration
from voxray.report.study.marks import IN_ORDER, PRUNED, Mark, mark_of
from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Trial

MAX_NUMBERED = 60  # bars; of more, numbers would not be read
# A pause of the whole study longer than this share of the time in which it ran is cut out of the axis.
MAX_PAUSE_SHARE = 0.25
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Span:
    """An attempt of a trial: seconds on the axis, and the lane that it ran in."""

    trial: Trial
    start_s: float
    end_s: float
    lane: int


def searched_s(spans: Sequence[tuple[float, float]]) -> float:
    """Return for how long at least one of the spans (start, end) lasted."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def spans_s(trials: Sequence[Trial]) -> list[tuple[Trial, float, float]]:
    """Return when each attempt began and ended, in seconds since the first; one that runs ends at the last
    time that the journal knows.
    """
    times = [time for trial in trials for time in (trial.start, trial.end) if time is not None]
    if not times:
        return []
    first, last = min(times), max(times)

    def since(time: datetime) -> float:
        return (time - first).total_seconds()

    return [(trial, since(trial.start), since(trial.end or last)) for trial in trials if trial.start]


def lanes(spans: Sequence[tuple[Trial, float, float]]) -> tuple[list[Span], list[tuple[float, float]]]:
    """Return the bars in lanes, each in the lowest lane that is free, and the pauses that were cut out of the
    axis: (place on it, seconds).
    """
    in_order = sorted(spans, key=lambda span: span[1:])
    most = MAX_PAUSE_SHARE * searched_s([span[1:] for span in in_order])
    free_from: list[float] = []
    bars: list[Span] = []
    pauses: list[tuple[float, float]] = []
    cut, reached = 0.0, 0.0
    for trial, start, end in in_order:
        if start - reached > most:
            pauses.append((reached - cut, start - reached))
            cut += start - reached
        reached = max(reached, end)
        lane = next((lane for lane, free in enumerate(free_from) if free <= start), len(free_from))
        free_from[lane : lane + 1] = [end]
        bars.append(Span(trial, start - cut, end - cut, lane))
    return bars, pauses


def timeline_figure(study: StudyFiles) -> Figure | None:
    """Return the timeline of all attempts; None where the journal holds no times."""
    bars, pauses = lanes(spans_s(study.trials))
    if not bars:
        return None
    length = max(bar.end_s for bar in bars)
    unit_s, unit = next(((s, name) for s, name in UNITS if length >= 2 * s), UNITS[-1])
    num_lanes = 1 + max(bar.lane for bar in bars)
    layout = {
        "height": 130 + 34 * num_lanes,
        "barmode": "overlay",
        "bargap": 0.25,
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"title": {"text": f"{unit} since the first trial began"}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": "at a time"},
            "tickvals": list(range(num_lanes)),
            "ticktext": [str(lane + 1) for lane in range(num_lanes)],
            "autorange": "reversed",
            "showgrid": False,
        },
        "shapes": [_cut(at / unit_s) for at, _ in pauses],
        "uniformtext": {"mode": "hide", "minsize": 9},
    }
    data = [
        _bars(mark, own, unit_s, is_numbered=len(bars) <= MAX_NUMBERED)
        for mark in IN_ORDER
        if (own := [bar for bar in bars if mark_of(study, bar.trial) is mark])
    ]
    busy = sum(bar.end_s - bar.start_s for bar in bars) / (num_lanes * length) if length else 1.0
    caption = (
        f"One bar per trial, in the lowest lane that was free; white is idle. The {num_lanes} lanes were "
    )
    caption += f"busy {busy:.0%} of the time."
    if pauses:
        lengths = ", ".join(duration(seconds) for _, seconds in pauses)
        caption += f" Cut out at a dashed line, as nothing ran: {lengths}."
    return Figure("Timeline", caption, {"data": data, "layout": layout})


def _bars(mark: Mark, bars: Sequence[Span], unit_s: float, *, is_numbered: bool) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": "pruned" if mark is PRUNED else mark.name,
        "base": [bar.start_s / unit_s for bar in bars],
        "x": [(bar.end_s - bar.start_s) / unit_s for bar in bars],
        "y": [bar.lane for bar in bars],
        "text": [str(bar.trial.index) if is_numbered else "" for bar in bars],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "marker": {"color": mark.color, "line": {"color": "white", "width": 1 if is_numbered else 0}},
        "hovertext": [f"trial {bar.trial.index}: {duration(bar.end_s - bar.start_s)}" for bar in bars],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _cut(at: float) -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5, "dash": "dash"}
    return {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}
