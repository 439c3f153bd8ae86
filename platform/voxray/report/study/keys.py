"""What the search says about its keys: importance, parallel coordinates, slices, a contour."""

import html
from typing import Any

from voxray.core.figures import BLUE, ORANGE, Figure
from voxray.report.page import Block, Text
from voxray.report.study.importance import MIN_TRIALS, Importance, importance
from voxray.report.study.parallel import parallel_figure
from voxray.report.study.read import StudyFiles
from voxray.report.study.slices import contour_figures, slice_figures


def key_blocks(study: StudyFiles) -> list[Block]:
    """Return the figures about the keys; a sentence where there is too little to say."""
    if not study.complete or not study.paths:
        return [Text("No trial is complete yet, so there is nothing to say about the keys.")]
    found = _importances(study)
    order = _by_importance(study, found)
    return [
        *_importance_blocks(study, found),
        parallel_figure(study, order),
        *slice_figures(study),
        *contour_figures(study, order),
    ]


def _importances(study: StudyFiles) -> list[Importance | None]:
    if len(study.complete) < MIN_TRIALS:
        return [None] * len(study.objectives)
    return [importance(study, place) for place in range(len(study.objectives))]


def _by_importance(study: StudyFiles, found: list[Importance | None]) -> list[str]:
    """Return the keys by their importance summed over the objectives; in the space's order where unknown."""
    sums = {
        path: sum(each.ped_anova.get(path, 0.0) for each in found if each is not None) for path in study.paths
    }
    return sorted(study.paths, key=lambda path: -sums[path])


def _importance_blocks(study: StudyFiles, found: list[Importance | None]) -> list[Block]:
    num = len(study.complete)
    if num < MIN_TRIALS:
        return [Text(f"Importance needs at least {MIN_TRIALS} complete trials; this study has {num}.")]
    several = study.has_several
    blocks: list[Block] = []
    for objective, each in zip(study.objectives, found, strict=True):
        of = f" for {objective.metric}" if several else ""
        if each is None:
            undefined = "the best quarter of the trials does not stand out from the others"
            blocks.append(Text(f"Importance{of} is not defined: {undefined}."))
        else:
            blocks.append(_importance_figure(each, f"Importance{of}", wide=not several))
    return blocks


def _importance_figure(found: Importance, title: str, *, wide: bool) -> Figure:
    paths = list(reversed(found.ped_anova))
    data = [_bars("PED-ANOVA", BLUE, [found.ped_anova[path] for path in paths], paths)]
    if found.fanova:
        data.insert(0, _bars("fANOVA", ORANGE, [found.fanova.get(path) for path in paths], paths))
    largest = max([*found.ped_anova.values(), *found.fanova.values()])
    layout = {
        "height": 130 + 40 * len(paths),
        "barmode": "group",
        "bargap": 0.3,
        "showlegend": True,
        "legend": {"traceorder": "reversed"},
        "xaxis": {"title": {"text": "share of the importance"}, "range": [0, 1.12 * largest]},
        "yaxis": {"automargin": True, "type": "category"},
    }
    caption = "PED-ANOVA: what sets the best quarter of the trials apart from all of them. "
    if found.fanova:
        caption += "fANOVA: how much of the differences between all trials a key explains alone"
        caption += (
            "; it sees keys that all trials drew. " if set(found.ped_anova) - set(found.fanova) else ". "
        )
    if found.left_out:
        caption += f"Left out, as too few trials drew them: {', '.join(found.left_out)}. "
    caption += f"From {found.num_trials} complete trials"
    caption += "." if found.is_steady else "; Optuna advises 20 or more, so take it as a hint."
    return Figure(title, caption, {"data": data, "layout": layout}, wide=wide)


def _bars(name: str, color: str, shares: list[float | None], paths: list[str]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": shares,
        "y": [html.escape(path) for path in paths],
        "marker": {"color": color},
        "text": ["" if share is None else f"{share:.2f}" for share in shares],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
    }
