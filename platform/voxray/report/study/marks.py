"""How trials look in all figures of a study: each kind has a colour and a symbol of its own."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voxray.core.figures import BLUE, GREY, ORANGE, PURPLE, SKY, VERMILLION
from voxray.report.page import number
from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Trial


@dataclass(frozen=True)
class Mark:
    """A kind of trial: its name in the legend, its colour and plotly's symbol."""

    name: str
    color: str
    symbol: str
    size: int = 8


BEST = Mark("best", VERMILLION, "star", 13)
ON_THE_FRONT = Mark("front", VERMILLION, "diamond", 10)
COMPLETE = Mark("complete", BLUE, "circle")
PRUNED = Mark("pruned, last value", GREY, "x-thin")
INFEASIBLE = Mark("infeasible", PURPLE, "square-open")
FAILED = Mark("failed", ORANGE, "cross")
UNFINISHED = Mark("cut short, or running", SKY, "circle-open")
IN_ORDER = (COMPLETE, PRUNED, INFEASIBLE, FAILED, UNFINISHED, ON_THE_FRONT, BEST)  # drawn last: on top


def mark_of(study: StudyFiles, trial: Trial) -> Mark:
    """Return the kind of a trial."""
    if study.is_top(trial):
        return BEST if not study.has_several else ON_THE_FRONT
    if not trial.is_done:
        return UNFINISHED
    if trial.state == "pruned":
        return PRUNED
    if not trial.is_feasible:
        return INFEASIBLE
    return COMPLETE if trial.state == "complete" else FAILED


def by_mark(study: StudyFiles, trials: Sequence[Trial]) -> list[tuple[Mark, list[Trial]]]:
    """Return the kinds that there are, in the order in which they are drawn, with their trials."""
    found: dict[Mark, list[Trial]] = {}
    for trial in trials:
        found.setdefault(mark_of(study, trial), []).append(trial)
    return [(mark, found[mark]) for mark in IN_ORDER if mark in found]


def points(mark: Mark, trials: Sequence[Trial], x: Sequence[Any], y: Sequence[Any]) -> dict[str, Any]:
    """Return a plotly trace of one kind of trials; the pointer shows each one's number and scores."""
    thin = {"line": {"width": 1.6, "color": mark.color}} if "thin" in mark.symbol else {}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": mark.name,
        "legendgroup": mark.name,
        "x": list(x),
        "y": list(y),
        "text": [scores_text(trial) for trial in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": mark.color, "symbol": mark.symbol, "size": mark.size} | thin,
    }


def scores_text(trial: Trial) -> str:
    """Return what the pointer shows of a trial."""
    scores = ", ".join(number(score) for score in trial.scores or ())
    return html.escape(f"trial {trial.index}: {scores or trial.shown_state}")


def with_scores(study: StudyFiles) -> list[Trial]:
    """Return the trials that are done and have numbers: complete and pruned ones."""
    return [trial for trial in study.done if trial.scores]
