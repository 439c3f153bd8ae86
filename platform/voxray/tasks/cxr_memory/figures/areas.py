"""AUROC per finding beside the linear floor, as an evaluation's table says."""

import html
from typing import Any

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure, RunView


def area_figure(run: RunView) -> Figure:
    """Draw dots with whiskers, best on top; an undefined finding stands below without a dot."""
    rows = sorted(run.evaluation["table"], key=lambda row: -1.0 if row.get("auroc") is None else row["auroc"])
    names = [html.escape(f"{row.get('label')} ({row.get('positives')})") for row in rows]
    whiskers = [row for row in zip(names, rows, strict=True) if row[1].get("low") is not None]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "95 % interval",
            "x": [end for _, row in whiskers for end in (row["low"], row["high"], None)],
            "y": [end for name, _ in whiskers for end in (name, name, None)],
            "line": {"color": BLUE, "width": 3},
            "opacity": 0.4,
            "hoverinfo": "skip",
        },
        _dots("model", names, [row.get("auroc") for row in rows], BLUE, "circle"),
    ]
    if any(row.get("floor") is not None for row in rows):
        floor = [row.get("floor") for row in rows]
        traces.append(_dots("linear floor", names, floor, VERMILLION, "diamond-open"))
    chance = {"type": "line", "x0": 0.5, "x1": 0.5, "yref": "paper", "y0": 0, "y1": 1}
    layout = {
        "height": 130 + 26 * len(rows),
        "xaxis": {"title": {"text": "AUROC (dashed: chance, 0.5)"}, "range": [0, 1.02], "dtick": 0.1},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": names, "automargin": True},
        "shapes": [{**chance, "line": {"color": GREY, "width": 1.5, "dash": "dash"}}],
        "hovermode": "closest",
    }
    caption = (
        "In brackets: positive images. A finding without a dot lacks positives or negatives in this split. "
        "With fewer than about ten positives an interval is too narrow: it resamples only those."
    )
    return Figure(f"AUROC per finding, {run.split}", caption, {"data": traces, "layout": layout})


def _dots(name: str, ys: list[str], xs: list[float | None], color: str, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": xs,
        "y": ys,
        "marker": {"color": color, "size": 10, "symbol": symbol, "line": {"width": 2, "color": color}},
        "hovertemplate": f"%{{y}}<br>{name}: %{{x:.3f}}<extra></extra>",
    }
