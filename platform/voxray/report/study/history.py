"""How the search went: the score of each trial with the best so far, and the curves of all trials."""

import html
import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure
from voxray.report.page import number
from voxray.report.study.marks import by_mark, points, with_scores
from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Objective, Trial

MAX_RUNGS = 12


def history_figures(study: StudyFiles) -> list[Figure]:
    """Return one history per objective."""
    return [_history(study, place) for place in range(len(study.objectives))]


def _history(study: StudyFiles, place: int) -> Figure:
    objective, several = study.objectives[place], study.has_several
    shown = with_scores(study)
    data: list[dict[str, Any]] = [_best_so_far(study.feasible, objective, place)] if study.feasible else []
    for mark, trials in by_mark(study, shown):
        trace = points(mark, trials, [t.index for t in trials], [t.score(place) for t in trials])
        spreads = [trial.spread(place) for trial in trials]
        if any(spread is not None for spread in spreads):
            trace["error_y"] = {"type": "data", "array": spreads, "thickness": 1, "width": 3}
        data.append(trace)
    few = len(study.trials) <= 20
    layout = {
        "height": 340,
        "hovermode": "closest",
        "xaxis": {"title": {"text": "trial"}, "dtick": 1 if few else None},
        "yaxis": {"title": {"text": html.escape(objective.metric)}},
    }
    title = f"History of {objective.metric}" if several else "History"
    return Figure(
        title, _caption(study, shown, objective), {"data": data, "layout": layout}, wide=not several
    )


def _best_so_far(trials: list[Trial], objective: Objective, place: int) -> dict[str, Any]:
    better: Callable[[float, float], float] = max if objective.maximize else min
    best = accumulate((trial.score(place) for trial in trials), better)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "best so far",
        "x": [trial.index for trial in trials],
        "y": list(best),
        "line": {"color": VERMILLION, "width": 2, "shape": "hv"},
        "hovertemplate": "best so far: %{y:.4g}<extra></extra>",
    }


def _caption(study: StudyFiles, shown: list[Trial], objective: Objective) -> str:
    said = [f"{objective.better.capitalize()} is better."]
    if not study.has_several:
        said.append("A complete trial's value is the best over its epochs.")
    if any(trial.spread(0) is not None for trial in shown):
        said.append("Of several seeds the mean; bars are ± one standard deviation over the seeds.")
    without = len({trial.index for trial in study.trials}) - len({trial.index for trial in shown})
    if without:
        said.append(f"{without} trials without a value are left out.")
    return " ".join(said)


def rung_figures(study: StudyFiles) -> list[Figure]:
    """Return the curves of all trials over epochs, one figure per objective; none where nothing is known."""
    curves = [trial for trial in _last_attempts(study) if trial.curve]
    return [_rungs(study, curves, place) for place in range(len(study.objectives))] if curves else []


def _last_attempts(study: StudyFiles) -> list[Trial]:
    """Return each logical trial once: an attempt that was cut short has no more than the one after it."""
    return list({trial.index: trial for trial in study.trials}.values())


def _rungs(study: StudyFiles, trials: list[Trial], place: int) -> Figure:
    objective, several = study.objectives[place], study.has_several
    in_epochs = all(point.epochs is not None for trial in trials for point in trial.curve)
    in_epochs = in_epochs and (study.search.get("scheduler") or {}).get("unit") != "steps"
    data = [
        _curve(study, trial, place, in_epochs)
        for trial in sorted(trials, key=lambda trial: study.is_top(trial))
    ]
    stopped = [trial for trial in trials if trial.state == "pruned"]
    if stopped:
        data.append(_ends(stopped, place, in_epochs))
    longest = max(_time(point, in_epochs) for trial in trials for point in trial.curve)
    rungs = [rung for rung in _rung_times(study, "epochs" if in_epochs else "steps") if rung <= longest]
    layout = {
        "height": 380,
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"title": {"text": "epochs" if in_epochs else "updates"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": html.escape(objective.metric)}},
        "shapes": [_rung_line(rung) for rung in rungs],
    }
    caption = f"Every trial's evaluations; {objective.better} is better."
    caption += f" {len(stopped)} trials were stopped early and end with a cross." if stopped else ""
    caption += f" Dotted lines: rungs at {', '.join(number(rung) for rung in rungs)}." if rungs else ""
    title = f"Curves of {objective.metric}" if several else "Curves of all trials"
    return Figure(title, caption, {"data": data, "layout": layout}, wide=not several)


def _curve(study: StudyFiles, trial: Trial, place: int, in_epochs: bool) -> dict[str, Any]:
    is_top = study.is_top(trial)
    name = f"{'best' if not study.has_several else 'front'}: trial {trial.index}"
    color = VERMILLION if is_top else GREY if trial.state == "pruned" else BLUE
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(trial.curve) == 1 else "lines",
        "name": name,
        "showlegend": is_top and len(study.front) <= 3,
        "x": [_time(point, in_epochs) for point in trial.curve],
        "y": [point.scores[place] for point in trial.curve],
        "opacity": 1.0 if is_top else 0.55,
        "line": {"color": color, "width": 3 if is_top else 1.3},
        "hovertemplate": f"trial {trial.index}: %{{y:.4g}} at %{{x:.4g}}<extra></extra>",
    }


def _ends(stopped: list[Trial], place: int, in_epochs: bool) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "stopped",
        "x": [_time(trial.curve[-1], in_epochs) for trial in stopped],
        "y": [trial.curve[-1].scores[place] for trial in stopped],
        "marker": {"color": GREY, "symbol": "x-thin", "size": 8, "line": {"width": 1.8, "color": GREY}},
        "hovertemplate": "%{text}<extra></extra>",
        "text": [f"trial {trial.index}, stopped" for trial in stopped],
    }


def _time(point: Any, in_epochs: bool) -> float:
    return float(point.epochs) if in_epochs else float(point.step)


def _rung_times(study: StudyFiles, unit: str) -> list[float]:
    """Return where ASHA and HyperBand look, grace · reduction_factor^k; nothing in another unit."""
    scheduler = study.search.get("scheduler") or {}
    if scheduler.get("name") not in ("asha", "hyperband") or scheduler.get("unit", "epochs") != unit:
        return []
    grace, factor = float(scheduler.get(f"grace_{unit}") or 1), float(scheduler.get("reduction_factor") or 3)
    return [grace * math.pow(factor, k) for k in range(MAX_RUNGS)]


def _rung_line(rung: float) -> dict[str, Any]:
    line = {"color": GREY, "width": 1, "dash": "dot"}
    return {"type": "line", "x0": rung, "x1": rung, "yref": "paper", "y0": 0, "y1": 1, "line": line}
