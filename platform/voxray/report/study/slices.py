"""How the score depends on the values: a small panel per key, and one of the two that matter most."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from voxray.core.figures import Figure
from voxray.report.study.marks import by_mark, points, scores_text, with_scores
from voxray.report.study.read import StudyFiles
from voxray.report.study.scales import MISSING, Scale, scale_of
from voxray.report.study.trials import Trial

COLUMNS, GAP = 4, 0.05
PANEL_PX, TICKS_PX, TITLE_PX = 150, 62, 20  # of a row: the panel, its tick labels below, its title above
LONGEST_TITLE = CHARACTERS = 36  # that fit above a panel, and below it
GOLDEN = 0.6180339887498949
JITTER = 0.3  # of the distance between two choices, so that equal points do not hide each other
MIN_TRIALS_FOR_A_SURFACE, GRID = 10, 40


def slice_figures(study: StudyFiles) -> list[Figure]:
    """Return, per objective, a figure with one small panel per key."""
    return [_slices(study, place) for place in range(len(study.objectives))]


def _slices(study: StudyFiles, place: int) -> Figure:
    objective, trials = study.objectives[place], with_scores(study)
    rows = math.ceil(len(study.paths) / COLUMNS)
    margin = {"t": 60, "b": 10, "l": 60, "r": 20}
    inner_px = rows * (TITLE_PX + PANEL_PX + TICKS_PX)
    layout: dict[str, Any] = {"height": inner_px + margin["t"] + margin["b"], "margin": margin}
    layout |= {"hovermode": "closest", "annotations": [], "legend": {"y": 1.0, "yanchor": "bottom"}}
    data: list[dict[str, Any]] = []
    for panel, path in enumerate(study.paths):
        values = [trial.values.get(path, MISSING) for trial in trials]
        scale, suffix = scale_of(path, study.distributions.get(path), values), str(panel + 1) if panel else ""
        data += _panel_traces(study, trials, scale, place, suffix, is_first=panel == 0)
        x_domain, y_domain = _domains(panel, rows, inner_px)
        layout["annotations"].append(_title(path, x_domain[0], y_domain[1]))
        layout[f"xaxis{suffix}"] = _x_axis(scale) | {"domain": x_domain, "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = {"domain": y_domain, "anchor": f"x{suffix}"}
        if panel:
            layout[f"yaxis{suffix}"] |= {"matches": "y"}
        if panel % COLUMNS:
            layout[f"yaxis{suffix}"] |= {"showticklabels": False}
        else:
            layout[f"yaxis{suffix}"] |= {"title": {"text": html.escape(objective.metric)}}
    title = f"Slices of {objective.metric}" if study.has_several else "Slices"
    caption = f"{objective.metric} over each key; the other keys vary too. Trials that did not draw a key "
    caption += "are not in its panel. Choices are spread a little sideways."
    return Figure(title, caption, {"data": data, "layout": layout})


def _panel_traces(
    study: StudyFiles, trials: list[Trial], scale: Scale, place: int, suffix: str, *, is_first: bool
) -> list[dict[str, Any]]:
    traces = []
    for mark, own in by_mark(study, trials):
        shown = [trial for trial in own if scale.at(trial.values.get(scale.name, MISSING)) is not None]
        x = [_spread(scale, trial) for trial in shown]
        trace = points(mark, shown, x, [trial.score(place) for trial in shown])
        trace["marker"] |= {"size": max(6, mark.size - 2)}
        traces.append(trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": is_first})
    return traces


def _spread(scale: Scale, trial: Trial) -> float | None:
    at = scale.plotly_value(trial.values.get(scale.name, MISSING))
    if scale.kind != "choice" or at is None:
        return at
    return at + JITTER * ((trial.index * GOLDEN) % 1 - 0.5)


def _domains(panel: int, rows: int, inner_px: int) -> tuple[list[float], list[float]]:
    """Return a panel's place in the figure, in shares of its width and height; the first row is on top."""
    row, column = divmod(panel, COLUMNS)
    width = (1 - GAP * (COLUMNS - 1)) / COLUMNS
    low, top = column * (width + GAP), 1 - row / rows - TITLE_PX / inner_px
    return [low, low + width], [top - PANEL_PX / inner_px, top]


def _title(path: str, x: float, y: float) -> dict[str, Any]:
    """Return the key above its panel; below it, the labels of long choices would run into it."""
    where = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    head, _, tail = path.rpartition(".")
    short = path if len(path) <= LONGEST_TITLE or not head else f"….{tail}"
    return where | {"text": html.escape(short), "showarrow": False, "hovertext": html.escape(path)}


def _x_axis(scale: Scale) -> dict[str, Any]:
    """Return the axis of a small panel: a logarithm has few labels."""
    axis = scale.plotly_axis() | {"title": {"text": ""}, "tickfont": {"size": 11}}
    if scale.kind == "choice":
        is_long = sum(len(text) + 2 for text in axis["ticktext"]) > CHARACTERS
        return axis | {"tickangle": -30 if is_long else 0, "ticklabeloverflow": "allow"}
    return axis | ({"minor": {"dtick": "D1"}, "nticks": 4} if scale.kind == "log" else {})


def contour_figures(study: StudyFiles, keys: Sequence[str]) -> list[Figure]:
    """Return, per objective, the scores over the first two of `keys` that are numbers and that at least half
    of the trials drew; nothing where there are no two.

    The surface is drawn from 10 trials on, linearly between trials, and nowhere beyond them.
    """
    found = []
    for place in range(len(study.objectives)):
        figure = _contour(study, keys, place)
        found += [figure] if figure else []
    return found


def _contour(study: StudyFiles, keys: Sequence[str], place: int) -> Figure | None:
    half = len(study.complete) / 2
    keys = [path for path in keys if sum(path in trial.values for trial in study.complete) >= half]
    scales = [
        scale_of(
            path, study.distributions.get(path), [trial.values.get(path, MISSING) for trial in study.complete]
        )
        for path in keys
    ]
    numeric = [scale for scale in scales if scale.kind != "choice"][:2]
    if len(numeric) < 2:
        return None
    x, y = numeric
    trials = [
        trial
        for trial in study.complete
        if x.at(trial.values.get(x.name, MISSING)) is not None
        and y.at(trial.values.get(y.name, MISSING)) is not None
    ]
    if not trials:
        return None
    objective, several = study.objectives[place], study.has_several
    surface = _surface(x, y, trials, place)
    data = [*([surface] if surface else []), _dots(x, y, trials, place, objective.metric, bool(surface))]
    layout = {
        "height": 400,
        "hovermode": "closest",
        "xaxis": x.plotly_axis(),
        "yaxis": y.plotly_axis(),
        "margin": {"l": 90},
    }
    caption = f"{objective.metric} over the two numbers that matter most, {len(trials)} complete trials; "
    caption += (
        "the surface runs linearly between the trials, and all other keys vary under it."
        if surface
        else f"a surface is drawn from {MIN_TRIALS_FOR_A_SURFACE} trials on."
    )
    title = f"Contour of {objective.metric}" if several else "Contour"
    return Figure(title, caption, {"data": data, "layout": layout}, wide=not several)


def _dots(x: Scale, y: Scale, trials: list[Trial], place: int, metric: str, has_bar: bool) -> dict[str, Any]:
    scores = [trial.score(place) for trial in trials]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x.plotly_value(trial.values[x.name]) for trial in trials],
        "y": [y.plotly_value(trial.values[y.name]) for trial in trials],
        "text": [scores_text(trial) for trial in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        "marker": {
            "size": 9,
            "color": scores,
            "colorscale": "Viridis",
            "cmin": min(scores),
            "cmax": max(scores),
            "line": {"color": "white", "width": 1.2},
            "showscale": not has_bar,
            "colorbar": {"title": {"text": html.escape(metric)}, "thickness": 14},
        },
    }


def _surface(x: Scale, y: Scale, trials: list[Trial], place: int) -> dict[str, Any] | None:
    """Return the filled contours between the trials; None for few trials, or all on one line."""
    from scipy.interpolate import griddata

    at = np.array([[scale.at(trial.values[scale.name]) for scale in (x, y)] for trial in trials], np.float64)
    if len(trials) < MIN_TRIALS_FOR_A_SURFACE:
        return None
    low, span = at.min(0), np.ptp(at, axis=0)
    if not span.all() or np.linalg.matrix_rank((at - at.mean(0)) / span, tol=1e-6) < 2:
        return None
    scores = np.array([trial.score(place) for trial in trials])
    grid = np.linspace(0, 1, GRID)
    found = griddata((at - low) / span, scores, tuple(np.meshgrid(grid, grid)), method="linear")
    raw = [
        10 ** (low[i] + grid * span[i]) if scale.kind == "log" else low[i] + grid * span[i]
        for i, scale in enumerate((x, y))
    ]
    metric_scale = {"zmin": float(scores.min()), "zmax": float(scores.max()), "colorscale": "Viridis"}
    return metric_scale | {
        "type": "contour",
        "x": raw[0],
        "y": raw[1],
        "z": found,
        "connectgaps": False,
        "hoverinfo": "skip",
        "line": {"width": 0.6, "color": "rgba(255,255,255,0.7)"},
        "ncontours": 10,
        "opacity": 0.85,
        "colorbar": {"thickness": 14},
    }
