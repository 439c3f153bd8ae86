"""The figures of a run's log: losses, metrics, learning rate and speed over updates."""

import html
from collections.abc import Sequence
from typing import Any

from voxray.core.figures import BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, Figure
from voxray.core.log_plots import Record, is_number, log_line, over_updates, thinned
from voxray.report.read import RunFiles


def curve_figures(run: RunFiles) -> list[Figure]:
    """Return the losses, one figure per validation metric, and the learning rate."""
    steps, epochs = run.of_kind("step"), run.of_kind("epoch")
    metrics = [_metric_figure(run, name, steps, epochs) for name in metric_names(epochs)]
    return [
        figure
        for figure in (_loss_figure(steps, epochs), *metrics, _rate_figure(steps))
        if figure is not None
    ]


def metric_names(epochs: Sequence[Record]) -> list[str]:
    """Return the validation metrics that are one number each, without the loss and counts (`val/num_…`)."""
    names = dict.fromkeys(key for record in epochs for key, value in record.items() if is_number(value))
    return [
        name
        for name in names
        if name.startswith("val/") and name != "val/loss" and not name.startswith("val/num_")
    ]


def speed_figures(run: RunFiles) -> list[Figure]:
    """Return rows per second and the share of time spent waiting for data, over updates."""
    steps = run.of_kind("step")
    rows = log_line("rows per second", steps, "samples_per_s", BLUE, "%{y:.4g} rows/s")
    wait = log_line("waiting", steps, "data_wait_share", VERMILLION, "%{y:.1%}")
    figures = []
    if rows is not None:
        figures.append(
            Figure(
                "Throughput",
                "Training rows per second over all workers." + thinned(steps),
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
                "Share of the time in which no batch was ready." + thinned(steps),
                plot,
                wide=False,
            )
        )
    return figures


def _loss_figure(steps: Sequence[Record], epochs: Sequence[Record]) -> Figure | None:
    per_step = log_line("train, per update", steps, "train/loss", SKY, "%{y:.4g}", width=1.5)
    train = per_step or log_line("train, per epoch", epochs, "train/loss", SKY, "%{y:.4g}", markers=True)
    val = log_line("validation, per epoch", epochs, "val/loss", BLUE, "%{y:.4g}", markers=True)
    traces = [trace for trace in (train, val) if trace is not None]
    if not traces:
        return None
    return Figure(
        "Loss", "Lower is better." + thinned(steps), over_updates(traces, "loss", steps), wide=False
    )


def _metric_figure(run: RunFiles, name: str, steps: Sequence[Record], epochs: Sequence[Record]) -> Figure:
    label = html.escape(name)
    line = log_line(label, epochs, name, GREEN, "%{y:.4g}", markers=True)
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


def _rate_figure(steps: Sequence[Record]) -> Figure | None:
    line = log_line("learning rate", steps, "learning_rate", ORANGE, "%{y:.3g}")
    if line is None:
        return None
    plot = over_updates([line], "learning rate", steps, from_zero=True)
    plot["layout"]["yaxis"]["exponentformat"] = "power"
    return Figure("Learning rate", "As the schedule set it." + thinned(steps), plot, wide=False)


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


def _known(values: list[Any]) -> list[float]:
    return [value for value in values if value is not None]
