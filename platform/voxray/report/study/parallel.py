"""Parallel coordinates: one line per trial through its values to its scores."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voxray.core.figures import GREY, PURPLE, VERMILLION, Figure
from voxray.report.study.marks import scores_text
from voxray.report.study.read import StudyFiles
from voxray.report.study.scales import MISSING, Scale, Tick, scale_of
from voxray.report.study.trials import Trial

# The worst and the best trial's colour: lightness alone tells them apart, and both stand out from white.
WORST, BEST = (158, 190, 224), (8, 48, 107)
CHARACTERS = 165  # that fit side by side over the width of a page
MAX_KEYS = 9  # of more, names would run into each other
LINES_AT_FULL = 25  # of more, each is fainter, so that the pale ones do not hide the dark ones


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: where each trial stands on it, from 0 to 1 (None: not drawn), and its ticks."""

    name: str
    is_log: bool
    shares: list[float | None]
    ticks: list[Tick]


def parallel_figure(study: StudyFiles, by_importance: Sequence[str]) -> Figure:
    """Return one line per complete trial, coloured by the first objective; a key not drawn is a gap. Of many
    keys the most important ones are shown.

    Drawn as plain lines: plotly's own `parcoords` needs WebGL, which remote desktops and headless
    browsers lack.
    """
    trials = sorted(study.complete, key=lambda trial: (study.is_top(trial), trial.is_feasible))
    left_out = by_importance[MAX_KEYS:]
    axes = [_key_axis(study, path, trials) for path in study.paths if path not in left_out]
    metrics = [
        _axis(Scale(objective.metric, "linear"), [trial.score(place) for trial in trials])
        for place, objective in enumerate(study.objectives)
    ]
    axes += metrics
    maximize = study.objectives[0].maximize
    heights = [share or 0.0 for share in metrics[0].shares]
    lines = [
        _line(study, axes, trials[i], i, height if maximize else 1 - height)
        for i, height in enumerate(heights)
    ]
    first = study.objectives[0].metric
    caption = f"One line per complete trial, coloured by {first}: the darker, the better."
    if any(share is None for axis in axes for share in axis.shares):
        caption += " A line has a gap where the trial did not draw a key."
    if not all(trial.is_feasible for trial in trials):
        caption += " Dotted: a constraint does not hold."
    if left_out:
        caption += f" The {MAX_KEYS} most important keys; left out: {', '.join(left_out)}."
    return Figure("Parallel coordinates", caption, {"data": lines, "layout": _layout(axes)})


def _key_axis(study: StudyFiles, path: str, trials: list[Trial]) -> _Axis:
    values = [trial.values.get(path, MISSING) for trial in trials]
    return _axis(scale_of(path, study.distributions.get(path), values), values)


def _axis(scale: Scale, values: list[Any]) -> _Axis:
    return _Axis(scale.name, scale.kind == "log", scale.shares(values), scale.ticks(values))


def _line(study: StudyFiles, axes: list[_Axis], trial: Trial, at: int, quality: float) -> dict[str, Any]:
    is_top, is_only = study.is_top(trial), len(study.front) == 1
    color = VERMILLION if is_top else _color(quality) if trial.is_feasible else PURPLE
    width = (4 if is_only else 2.5) if is_top else 1.8
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(range(len(axes))),
        "y": [axis.shares[at] for axis in axes],
        "name": f"best: trial {trial.index}" if is_only else "front",
        "showlegend": is_top and trial is study.front[0],
        "opacity": 1.0 if is_top else max(0.2, min(0.75, LINES_AT_FULL / len(study.complete))),
        "line": {"color": color, "width": width, "dash": "solid" if trial.is_feasible else "dot"},
        "marker": {"size": 5},
        "hovertemplate": f"{scores_text(trial)}<extra></extra>",
    }


def _layout(axes: list[_Axis]) -> dict[str, Any]:
    return {
        "height": 460,
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [_title(axis, most=int(CHARACTERS / len(axes))) for axis in axes],
            "tickfont": {"size": 11},
            "range": [-0.35, len(axes) - 0.6],
            "showgrid": False,
            "zeroline": False,
            "side": "top",
            "ticks": "",
            "tickangle": 0,
        },
        "yaxis": {"visible": False, "range": [-0.05, 1.05]},
        "shapes": [_pole(position) for position in range(len(axes))],
        "annotations": [
            _tick(position, place, text) for position, axis in enumerate(axes) for place, text in axis.ticks
        ],
        "hovermode": "closest",
        "showlegend": True,
        "margin": {"t": 75, "b": 10},
        "legend": {"y": 0, "yanchor": "top"},
    }


def _title(axis: _Axis, most: int) -> str:
    """Return an axis's name over two lines, each cut to `most` characters; a third says that it is a log."""
    head, _, tail = axis.name.rpartition(".")
    lines = [*([f"{head}."] if head else []), tail]
    cut = [html.escape(line if len(line) <= most else line[: most - 1] + "…") for line in lines]
    return "<br>".join([*cut, *(["(log)"] if axis.is_log else [])])


def _pole(position: int) -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5}
    return {"type": "line", "x0": position, "x1": position, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _tick(position: int, place: float, text: str) -> dict[str, Any]:
    look = {"font": {"size": 11, "color": "#374151"}, "bgcolor": "rgba(255,255,255,0.85)"}
    where = {"x": position, "y": place, "xanchor": "right", "xshift": -6}
    return where | look | {"text": text, "showarrow": False}


def _color(quality: float) -> str:
    """Return the colour of a trial: 0 is the worst, 1 the best."""
    red, green, blue = (round(low + quality * (high - low)) for low, high in zip(WORST, BEST, strict=True))
    return f"rgb({red},{green},{blue})"
