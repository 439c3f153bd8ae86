"""Figures of an ablation: each arm's difference to the baseline with its interval, and every single score."""

import html
from typing import Any

from voxray.core.figures import BLUE, GREEN, GREY, VERMILLION, Figure

COLOR = {"better": GREEN, "worse": VERMILLION, "": GREY}
SEED_LINE = "rgba(0, 114, 178, 0.35)"


def forest_figure(table: dict[str, Any]) -> Figure:
    """Return the forest plot: mean differences to the baseline with their bootstrap intervals, arm by arm."""
    rows = [row for row in table["rows"] if row["difference"] is not None]
    metric = html.escape(str(table["metric"]))
    data = [
        _points(verdict, metric, [row for row in rows if row["verdict"] == verdict])
        for verdict in COLOR
        if any(row["verdict"] == verdict for row in rows)
    ]
    arms = [html.escape(str(row["arm"])) for row in reversed(rows)]
    better = "right" if table["mode"] == "max" else "left"
    layout = {
        "height": 150 + 40 * len(rows),
        "xaxis": {"title": {"text": f"difference of {metric} to the baseline"}, "zeroline": False},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": arms,
            "range": [-0.5, len(arms) - 0.5],
            "automargin": True,
        },
        "shapes": [_zero_line()],
        "hovermode": "closest",
        "showlegend": True,
    }
    caption = f"Mean over paired seeds and its bootstrap interval; better lies on the {better}. "
    caption += "Coloured where the difference holds after Holm's correction."
    return Figure("Difference to the baseline", caption, {"data": data, "layout": layout}, wide=False)


def _points(verdict: str, metric: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    differences = [row["difference"] for row in rows]
    ends = [
        (row["difference"], row["difference"]) if row["low"] is None else (row["low"], row["high"])
        for row in rows
    ]
    pairs = list(zip(differences, ends, strict=True))
    return {
        "type": "scatter",
        "mode": "markers",
        "name": verdict or "not shown to differ",
        "x": differences,
        "y": [html.escape(str(row["arm"])) for row in rows],
        "customdata": ends,
        "marker": {"color": COLOR[verdict], "size": 10, "symbol": "square"},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [end[1] - difference for difference, end in pairs],
            "arrayminus": [difference - end[0] for difference, end in pairs],
            "color": COLOR[verdict],
            "thickness": 2,
            "width": 6,
        },
        "hovertemplate": f"%{{y}}: {metric} %{{x:+.4g}} [%{{customdata[0]:.4g}}, %{{customdata[1]:.4g}}]"
        "<extra></extra>",
    }


def _zero_line() -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    return {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
        "layer": "below",
    }


def scores_figure(table: dict[str, Any]) -> Figure:
    """Return every score, one line per seed through the arms, and the arms' means."""
    rows = table["rows"]
    metric = html.escape(str(table["metric"]))
    arms = [html.escape(str(row["arm"])) for row in rows]
    seeds = list(dict.fromkeys(seed for row in rows for seed in row["scores"]))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "one seed",
            "legendgroup": "seeds",
            "showlegend": number == 0,
            "x": arms,
            "y": [row["scores"].get(seed) for row in rows],
            "line": {"color": SEED_LINE, "width": 1.5},
            "marker": {"color": BLUE, "size": 6},
            "connectgaps": False,
            "hovertemplate": f"%{{x}}, seed {html.escape(str(seed))}: {metric} %{{y:.4g}}<extra></extra>",
        }
        for number, seed in enumerate(seeds)
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "mean",
            "x": arms,
            "y": [row["mean"] for row in rows],
            "marker": {"color": VERMILLION, "size": 26, "symbol": "line-ew-open", "line": {"width": 3}},
            "hovertemplate": f"%{{x}}: mean {metric} %{{y:.4g}}<extra></extra>",
        }
    )
    layout = {
        "height": 360,
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"title": {"text": metric}},
        "hovermode": "closest",
    }
    caption = "Each line is one seed: lines that run in parallel are why pairs tell more than means."
    return Figure("Every score", caption, {"data": data, "layout": layout}, wide=False)
