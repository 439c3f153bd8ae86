"""The figures of a study: values per trial, importance, and parallel coordinates."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure
from voxray.report.page import number
from voxray.report.trials import StudyFiles, Trial

# The worst and the best trial's colour: lightness alone tells them apart, and both stand out from white.
WORST, BEST = (158, 190, 224), (8, 48, 107)
NUM_TICKS = 5


def history_figure(study: StudyFiles) -> Figure:
    """Return each complete trial's value and the best so far."""
    trials, metric = study.complete, html.escape(study.metric)
    values = [trial.value for trial in trials if trial.value is not None]
    better: Callable[[float, float], float] = max if study.maximize else min
    best = list(accumulate(values, better))
    indices = [trial.index for trial in trials]
    hover = f"trial %{{x}}: {metric} %{{y:.4g}}<extra></extra>"
    data = [
        {"type": "scatter", "mode": "lines", "name": "best so far", "x": indices, "y": best}
        | {
            "line": {"color": VERMILLION, "width": 2, "shape": "hv"},
            "hovertemplate": "best so far: %{y:.4g}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "trial",
            "x": indices,
            "y": values,
            "hovertemplate": hover,
        }
        | {"marker": {"color": BLUE, "size": 9}},
    ]
    layout = {"height": 340, "xaxis": {"title": {"text": "trial"}, "dtick": 1 if len(trials) <= 20 else None}}
    left_out = len(study.trials) - len(trials)
    caption = "The best value over a trial's epochs." + (
        f" {left_out} trials without a value are left out." if left_out else ""
    )
    return Figure(
        "History", caption, {"data": data, "layout": layout | {"yaxis": {"title": {"text": metric}}}}
    )


def importance_figure(shares: dict[str, float], num_trials: int, *, steady: bool) -> Figure:
    """Return bars of importance, the largest on top."""
    paths = [html.escape(path) for path in reversed(shares)]
    values = list(reversed(shares.values()))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": paths,
        "marker": {"color": BLUE},
        "width": 0.6,
    }
    bars |= {"text": [f"{value:.2f}" for value in values], "textposition": "outside", "cliponaxis": False}
    layout = {
        "height": 120 + 34 * len(paths),
        "xaxis": {"title": {"text": "share of the importance"}, "range": [0, 1.1 * max(values)]},
        "yaxis": {"automargin": True, "type": "category"},
    }
    caption = "PED-ANOVA: what sets the best quarter of the trials apart from all of them. "
    caption += f"From {num_trials} complete trials"
    caption += "." if steady else "; Optuna advises 20 or more, so take it as a hint."
    return Figure("Importance", caption, {"data": [bars | {"hoverinfo": "skip"}], "layout": layout})


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: where a value stands on it, from 0 to 1, and its ticks."""

    title: str
    places: dict[int, float]  # position in the list of trials → place
    ticks: list[tuple[float, str]]


def parallel_figure(study: StudyFiles) -> Figure:
    """Return one line per complete trial through all values to the metric, coloured by the metric.

    Drawn as plain lines: plotly's own `parcoords` needs WebGL, which remote desktops and headless
    browsers lack.
    """
    trials = study.complete
    columns = {path: [trial.values.get(path) for trial in trials] for path in study.paths}
    axes = [
        _axis(study, path, values) for path, values in columns.items() if any(v is not None for v in values)
    ]
    metric_axis = _number_axis(study.metric, [trial.value for trial in trials], log=False)
    axes.append(metric_axis)
    order = sorted(
        range(len(trials)), key=lambda i: trials[i] is study.best
    )  # the best is drawn last, on top
    heights = metric_axis.places
    quality = heights if study.maximize else {i: 1 - height for i, height in heights.items()}
    lines = [_line(study, axes, trials[i], i, quality[i]) for i in order]
    layout = {
        "height": 460,
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [axis.title for axis in axes],
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
        "margin": {"t": 60, "b": 10},
        "legend": {"y": 0, "yanchor": "top"},
    }
    caption = f"One line per complete trial, coloured by {study.metric}: the darker, the better."
    return Figure("Parallel coordinates", caption, {"data": lines, "layout": layout})


def _line(
    study: StudyFiles, axes: list[_Axis], trial: Trial, position: int, quality: float
) -> dict[str, Any]:
    is_best = trial is study.best
    metric = html.escape(study.metric)
    points = [(x, axis.places.get(position)) for x, axis in enumerate(axes)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "name": f"best: trial {trial.index}",
        "showlegend": is_best,
        "opacity": 1.0 if is_best else 0.75,
        "line": {"color": VERMILLION if is_best else _color(quality), "width": 4 if is_best else 1.8},
        "marker": {"size": 5},
        "hovertemplate": f"trial {trial.index}: {metric} {number(trial.value)}<extra></extra>",
    }


def _axis(study: StudyFiles, path: str, values: list[Any]) -> _Axis:
    """Return an axis of numbers, or of choices at even distances."""
    drawn = study.distributions.get(path) or {}
    kinds = {kind for kind, value in drawn.items() if value is not None}
    known = {value for value in values if value is not None}
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if numeric and "choice" not in kinds:
        return _number_axis(path, values, log=bool(kinds & {"loguniform", "logint"}))
    choices = sorted(known) if numeric else sorted(known, key=str)
    place = {value: i / (len(choices) - 1) if len(choices) > 1 else 0.5 for i, value in enumerate(choices)}
    ticks = [(place[value], html.escape(number(value))) for value in choices]
    return _Axis(
        _title(path), {i: place[value] for i, value in enumerate(values) if value is not None}, ticks
    )


def _number_axis(path: str, values: list[Any], *, log: bool) -> _Axis:
    scaled = {i: math.log10(v) if log else float(v) for i, v in enumerate(values) if v is not None}
    low, high = min(scaled.values()), max(scaled.values())
    span = high - low or 1.0
    places = {i: (value - low) / span if high > low else 0.5 for i, value in scaled.items()}
    shares = [0.5] if high == low else [k / (NUM_TICKS - 1) for k in range(NUM_TICKS)]
    at = [low if high == low else low + share * span for share in shares]
    ticks = [(share, f"{10**value if log else value:.3g}") for share, value in zip(shares, at, strict=True)]
    return _Axis(_title(path) + (" (log)" if log else ""), places, ticks)


def _title(path: str) -> str:
    """Return a dotted path over two lines, so that neighbours do not touch."""
    head, _, tail = path.rpartition(".")
    return f"{html.escape(head)}.<br>{html.escape(tail)}" if head else html.escape(tail)


def _pole(position: int) -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5}
    return {"type": "line", "x0": position, "x1": position, "y0": 0, "y1": 1, "line": line, "layer": "below"}


def _tick(position: int, place: float, text: str) -> dict[str, Any]:
    look = {"font": {"size": 11, "color": "#374151"}, "bgcolor": "rgba(255,255,255,0.85)"}
    return {
        "x": position,
        "y": place,
        "text": text,
        "showarrow": False,
        "xanchor": "right",
        "xshift": -6,
    } | look


def _color(quality: float) -> str:
    """Return the colour of a trial: 0 is the worst, 1 the best."""
    red, green, blue = (round(low + quality * (high - low)) for low, high in zip(WORST, BEST, strict=True))
    return f"rgb({red},{green},{blue})"
