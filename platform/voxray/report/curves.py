"""The figures of a run's log: losses, metrics, learning rate and speed over updates."""

import html
from typing import Any

from voxray.core.figures import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, Figure
from voxray.report.read import RunFiles

Record = dict[str, Any]

# A browser draws this many points of a line at once; a longer log is thinned and the caption says so.
MAX_POINTS = 2000


def curve_figures(run: RunFiles) -> list[Figure]:
    """Return the losses, one figure per validation metric, and the learning rate."""
    steps, epochs = run.of_kind("step"), run.of_kind("epoch")
    metrics = [_metric_figure(run, name, steps, epochs) for name in metric_names(epochs)]
    return [
        figure
        for figure in (_loss_figure(steps, epochs), *metrics, _rate_figure(steps))
        if figure is not None
    ]


def metric_names(epochs: list[Record]) -> list[str]:
    """Return the validation metrics that are one number each, without the loss and counts (`val/num_…`)."""
    names = dict.fromkeys(key for record in epochs for key, value in record.items() if _is_number(value))
    return [
        name
        for name in names
        if name.startswith("val/") and name != "val/loss" and not name.startswith("val/num_")
    ]


def speed_figures(run: RunFiles) -> list[Figure]:
    """Return rows per second and the share of time spent waiting for data, over updates."""
    steps = run.of_kind("step")
    rows = _line("rows per second", steps, "samples_per_s", BLUE, "%{y:.4g} rows/s")
    wait = _line("waiting", steps, "data_wait_share", VERMILLION, "%{y:.1%}")
    figures = []
    if rows is not None:
        figures.append(
            Figure(
                "Throughput",
                "Training rows per second over all workers." + _thinned(steps),
                over_updates([rows], "rows per second", steps, from_zero=True),
                wide=False,
            )
        )
    if wait is not None:
        plot = over_updates([wait], "share of time", steps, from_zero=True)
        plot["layout"]["yaxis"] |= {
            "tickformat": ".0%",
            "range": [0, max(0.1, 1.1 * max(_known(wait["y"]), default=0))],
        }
        figures.append(
            Figure(
                "Waiting for data",
                "Share of the time in which no batch was ready." + _thinned(steps),
                plot,
                wide=False,
            )
        )
    return figures


def over_updates(
    traces: list[dict[str, Any]], title: str, steps: list[Record], *, from_zero: bool = False
) -> dict[str, Any]:
    """Return a plotly figure whose x axis counts updates, with a line where a new stage begins."""
    starts = _stage_starts(steps)
    return {
        "data": traces,
        "layout": {
            "height": 320,
            "xaxis": {"title": {"text": "update"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": title}} | ({"rangemode": "tozero"} if from_zero else {}),
            "shapes": [
                {
                    "type": "line",
                    "x0": x,
                    "x1": x,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": GREY, "width": 1},
                }
                for _, x in starts
            ],
            "annotations": [
                {
                    "x": x,
                    "y": 1,
                    "yref": "paper",
                    "text": html.escape(name),
                    "showarrow": False,
                    "xanchor": "left",
                }
                for name, x in starts
            ],
        },
    }


def _loss_figure(steps: list[Record], epochs: list[Record]) -> Figure | None:
    per_step = _line("train, per update", steps, "train/loss", SKY, "%{y:.4g}", width=1.5)
    train = per_step or _line("train, per epoch", epochs, "train/loss", SKY, "%{y:.4g}", markers=True)
    val = _line("validation, per epoch", epochs, "val/loss", BLUE, "%{y:.4g}", markers=True)
    traces = [trace for trace in (train, val) if trace is not None]
    if not traces:
        return None
    return Figure(
        "Loss", "Lower is better." + _thinned(steps), over_updates(traces, "loss", steps), wide=False
    )


def _metric_figure(run: RunFiles, name: str, steps: list[Record], epochs: list[Record]) -> Figure:
    label = html.escape(name)
    line = _line(label, epochs, name, GREEN, "%{y:.4g}", markers=True)
    assert line is not None
    plot = over_updates([line], label, steps)
    caption = "On the validation rows, after each epoch."
    if run.best.get("metric") == name:
        best = run.end.get("best") or {}
        at = [record["step"] for record in epochs if record.get(name) == run.best.get("value")]
        step = best.get("step", at[0] if at else None)
        plot["data"].append(_marker("best checkpoint", step, run.best.get("value")))
        caption += " The star is the best checkpoint."
    if "auroc" in name.lower():
        plot["data"].append(_chance_line(line["x"]))
    return Figure(name, caption, plot, wide=False)


def _rate_figure(steps: list[Record]) -> Figure | None:
    line = _line("learning rate", steps, "learning_rate", ORANGE, "%{y:.3g}")
    if line is None:
        return None
    plot = over_updates([line], "learning rate", steps, from_zero=True)
    plot["layout"]["yaxis"]["exponentformat"] = "power"
    return Figure("Learning rate", "As the schedule set it." + _thinned(steps), plot, wide=False)


def _line(
    name: str,
    records: list[Record],
    key: str,
    color: str,
    hover: str,
    *,
    width: float = 2,
    markers: bool = False,
) -> dict[str, Any] | None:
    """Return a trace of `key` over updates, with gaps where it is undefined; None where it always is."""
    points = [
        (record["step"], record[key]) for record in _thin(records) if key in record and "step" in record
    ]
    if not any(_is_number(y) for _, y in points):
        return None
    return {
        "type": "scatter",
        "name": name,
        "mode": "lines+markers" if markers or len(points) == 1 else "lines",
        "x": [x for x, _ in points],
        "y": [y if _is_number(y) else None for _, y in points],
        "line": {"color": color, "width": width},
        "hovertemplate": f"update %{{x}}: {hover}<extra></extra>",
    }


def _marker(name: str, x: Any, y: Any) -> dict[str, Any]:
    marker = {"symbol": "star", "size": 14, "color": VERMILLION}
    return {
        "type": "scatter",
        "name": name,
        "mode": "markers",
        "x": [x],
        "y": [y],
        "marker": marker,
        "hovertemplate": f"{name}: %{{y:.4g}} at update %{{x}}<extra></extra>",
    }


def _chance_line(xs: list[Any]) -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5, "dash": "dash"}
    ends = [0, max(xs)]
    return {
        "type": "scatter",
        "name": "chance, 0.5",
        "mode": "lines",
        "x": ends,
        "y": [0.5, 0.5],
        "line": line,
    }


def _stage_starts(steps: list[Record]) -> list[tuple[str, Any]]:
    """Return name and first update of each stage; empty where there is one stage only."""
    first: dict[str, Any] = {}
    for record in steps:
        first.setdefault(str(record.get("stage", "")), record.get("step"))
    return list(first.items()) if len(first) > 1 else []


def _thin(records: list[Record]) -> list[Record]:
    stride = -(-len(records) // MAX_POINTS)
    return records if stride <= 1 else [*records[:-1:stride], records[-1]]


def _thinned(records: list[Record]) -> str:
    stride = -(-len(records) // MAX_POINTS)
    return f" Every {stride}th of {len(records):,} logged updates is drawn." if stride > 1 else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _known(values: list[Any]) -> list[float]:
    return [value for value in values if value is not None]
