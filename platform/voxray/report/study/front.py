"""Several objectives: which trials no other one beats, drawn pair by pair, and what to type to get each."""

import html
import shlex
from itertools import combinations
from pathlib import Path
from typing import Any

from voxray.config.secrets import masked
from voxray.core.figures import VERMILLION, Figure
from voxray.report.page import Block, Table, Text
from voxray.report.study.marks import by_mark, points, with_scores
from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Trial

MAX_DRAWN = 3  # objectives; of more the table alone is shown
GAP = 0.09


def front_blocks(study: StudyFiles) -> list[Block]:
    """Return the front as a figure (two or three objectives) and a table with each trial's command."""
    if not study.front:
        return [Text("No trial is complete and within the constraints yet.")]
    figures: list[Block] = [_front_figure(study)] if len(study.objectives) <= MAX_DRAWN else []
    metrics = tuple(objective.metric for objective in study.objectives)
    first = study.objectives[0]
    top = sorted(study.front, key=lambda trial: first.sign * (trial.value or 0.0))
    rows = [
        (
            str(trial.index),
            *(trial.scores or ()),
            _file(study, trial),
            *(masked(path, trial.values_at_the_end.get(path)) for path in study.paths),
        )
        for trial in top
    ]
    caption = (
        f"{len(top)} of {len(study.feasible)} feasible complete trials, none of which beats another in every "
    )
    caption += f"objective; sorted by {first.metric}."
    table = Table(("trial", *metrics, "experiment", *study.paths), rows, caption)
    return [*figures, table, *_command(study, top)]


def _file(study: StudyFiles, trial: Trial) -> str:
    file = Path("front") / f"{trial.index:04d}.yaml"
    return str(file) if (study.folder / file).is_file() else ""


def _command(study: StudyFiles, top: list[Trial]) -> list[Block]:
    written = [file for trial in top if (file := _file(study, trial))]
    if not written:
        return [
            Text("The front's experiment files are not written yet: they come with the end of the search.")
        ]
    return [Text("Train one of them:", f"voxray train {shlex.quote(str(study.folder / written[0]))}")]


def _front_figure(study: StudyFiles) -> Figure:
    pairs = list(combinations(range(len(study.objectives)), 2))
    width = (1 - GAP * (len(pairs) - 1)) / len(pairs)
    layout: dict[str, Any] = {"height": 420, "hovermode": "closest", "margin": {"l": 70}}
    data: list[dict[str, Any]] = []
    for panel, (i, j) in enumerate(pairs):
        suffix = str(panel + 1) if panel else ""
        low = panel * (width + GAP)
        layout[f"xaxis{suffix}"] = _axis(study, i) | {"domain": [low, low + width], "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = _axis(study, j) | {"anchor": f"x{suffix}"}
        place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": panel == 0}
        if len(pairs) == 1:
            data.append(_stairs(study) | place)
        for mark, trials in by_mark(study, with_scores(study)):
            x, y = ([trial.score(k) for trial in trials] for k in (i, j))
            data.append(points(mark, trials, x, y) | place)
    caption = (
        "Every trial with numbers. Diamonds: no feasible trial is at least as good in every objective and "
    )
    caption += "better in one."
    if len(pairs) > 1:
        caption += " A point of the front may look beaten in a panel: it is better in the third objective."
    return Figure("Pareto front", caption, {"data": data, "layout": layout})


def _axis(study: StudyFiles, place: int) -> dict[str, Any]:
    objective = study.objectives[place]
    return {"title": {"text": html.escape(f"{objective.metric} ({objective.better} is better)")}}


def _stairs(study: StudyFiles) -> dict[str, Any]:
    """Return the border of what the front beats, as a step line that claims nothing between its points."""
    scores = sorted((trial.score(0), trial.score(1)) for trial in study.front)
    shape = "vh" if study.objectives[0].maximize else "hv"
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [score[0] for score in scores],
        "y": [score[1] for score in scores],
        "name": "border of the front",
        "line": {"color": VERMILLION, "width": 1.2, "dash": "dot", "shape": shape},
        "hoverinfo": "skip",
    }
