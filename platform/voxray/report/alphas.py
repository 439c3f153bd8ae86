"""How a closed form chose its penalty: the held-out error of each alpha, from the run's log."""

from collections.abc import Sequence
from statistics import stdev
from typing import Any

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure
from voxray.core.log_plots import Record, is_number


def alpha_figures(records: Sequence[Record]) -> list[Figure]:
    """Return a figure per closed form that chose among alphas, the last of each stage; no alpha of 0 has a
    place on its logarithmic axis.
    """
    last = {str(record.get("stage", "")): record for record in records if _chose(record)}
    return [_figure(record, stage if len(last) > 1 else "") for stage, record in last.items()]


def _chose(record: Record) -> bool:
    alphas, means = record.get("alphas"), record.get("held_out_mse")
    return isinstance(alphas, list) and isinstance(means, list) and len(alphas) == len(means) > 1


def _figure(record: Record, stage: str) -> Figure:
    chosen = record.get("alpha")
    shares = chosen if isinstance(chosen, dict) else {}
    points = sorted(
        (alpha, mean, [fold[place] for fold in record.get("fold_mse") or []])
        for place, (alpha, mean) in enumerate(zip(record["alphas"], record["held_out_mse"], strict=True))
        if alpha > 0
    )
    folds = len(record.get("fold_mse") or [])
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "held-out error",
        "x": [alpha for alpha, _, _ in points],
        "y": [mean for _, mean, _ in points],
        "line": {"color": BLUE},
        "hovertemplate": "alpha %{x:.4g}: %{y:.5g}<extra></extra>",
    }
    if folds > 1:
        trace["error_y"] = {
            "type": "data",
            "array": [stdev(each) for _, _, each in points],
            "color": GREY,
            "thickness": 1.2,
        }
    marked = [point for point in points if point[0] == chosen or f"{point[0]:g}" in shares]
    star = {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen",
        "x": [alpha for alpha, _, _ in marked],
        "y": [mean for _, mean, _ in marked],
        "marker": {"symbol": "star", "size": 14, "color": VERMILLION},
        "hovertemplate": "chosen: alpha %{x:.4g}<extra></extra>",
    }
    plot = {
        "data": [trace, star],
        "layout": {
            "height": 320,
            "xaxis": {"title": {"text": "alpha"}, "type": "log", "exponentformat": "power"},
            "yaxis": {"title": {"text": "held-out mean squared error"}},
        },
    }
    title = "Choice of the penalty" + (f", {stage}" if stage else "")
    return Figure(title, _caption(record, points, folds, shares), plot, wide=False)


def _caption(record: Record, points: Sequence[tuple[float, float, Any]], folds: int, shares: Record) -> str:
    bars = f", bars are the standard deviation over {folds} folds" if folds > 1 else ""
    text = f"Mean squared error on rows that were held out{bars}."
    if shares:
        counts = ", ".join(f"{alpha}: {count:,}" for alpha, count in shares.items())
        return f"{text} Each target has its own alpha (stars; targets that took it: {counts})."
    chosen = record.get("alpha")
    text += f" The star is the alpha that was taken, {chosen:g}." if is_number(chosen) else ""
    if chosen in (points[0][0], points[-1][0]):
        text += " It is the end of the list: a value beyond it may be better."
    return text
