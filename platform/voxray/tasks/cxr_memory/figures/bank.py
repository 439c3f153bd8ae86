"""The memory bank over training, from the log: how full it is, what it takes in, how old, which findings.

Shapes: E validations and ends of epochs in the log, K findings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voxray.core.figures import BLUE, GREEN, GREY, VERMILLION, Figure, TrainingView
from voxray.core.log_plots import Record, is_number, log_line, over_updates, thinned
from voxray.tasks.cxr_memory.config import LABELS

HEAT_COLORS = ((0.0, "#F3F4F6"), (0.5, "#56B4E9"), (1.0, "#08306B"))
TRAINING_DOMAIN = (0.94, 1.0)  # the part of the width that the training images' column takes


def bank_figures(training: TrainingView) -> list[Figure]:
    """Return fill, rows kept, age of the slots and the findings they hold; none where the log has no bank."""
    steps = [record for record in training.log if record.get("kind") == "step"]
    size = (training.config.get("memory") or {}).get("bank_size")
    shown = (
        _fill_figure(steps, size),
        _kept_figure(steps),
        _age_figure(steps),
        _findings_figure(steps, training.log, training.statistics),
    )
    return [figure for figure in shown if figure is not None]


def _fill_figure(steps: Sequence[Record], size: Any) -> Figure | None:
    line = log_line("filled slots", steps, "bank/count", BLUE, "%{y:,} slots")
    if line is None:
        return None
    plot = over_updates([line], "slots", steps, from_zero=True)
    caption = "Slots that hold a vector; a bank never shrinks."
    if is_number(size):
        plot["layout"]["yaxis"]["range"] = [0, 1.1 * size]
        ends = [0, max(line["x"])]
        bound = {"color": GREY, "width": 1.5, "dash": "dash"}
        plot["data"].append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"bank_size {size:,}",
                "x": ends,
                "y": [size, size],
                "line": bound,
                "hoverinfo": "skip",
            }
        )
        full = [x for x, y in zip(line["x"], line["y"], strict=True) if y is not None and y >= size]
        share = max(y for y in line["y"] if y is not None) / size
        caption += f" Full by update {full[0]:,}." if full else f" At most {share:.0%} full in this run."
    return Figure("Memory bank: fill", caption + thinned(steps), plot, wide=False)


def _kept_figure(steps: Sequence[Record]) -> Figure | None:
    line = log_line("kept", steps, "bank/selected", GREEN, "%{y:,} rows")
    if line is None:
        return None
    plot = over_updates([line], "rows", steps, from_zero=True)
    caption = "Rows of the logged update that the strategy found worth keeping." + thinned(steps)
    return Figure("Memory bank: rows kept", caption, plot, wide=False)


def _age_figure(steps: Sequence[Record]) -> Figure | None:
    lines = (
        log_line("median", steps, "bank/age_median", BLUE, "median %{y:.4g}"),
        log_line("oldest", steps, "bank/age_max", VERMILLION, "oldest %{y:,}"),
    )
    drawn = [line for line in lines if line is not None]
    if not drawn:
        return None
    caption = "Updates since a slot was last written, over the filled slots." + thinned(steps)
    plot = over_updates(drawn, "updates", steps, from_zero=True)
    return Figure("Memory bank: age of its slots", caption, plot, wide=False)


def _findings_figure(
    steps: Sequence[Record], log: Sequence[Record], statistics: Mapping[str, Any]
) -> Figure | None:
    """Draw a heat map [K, E], the training images' own shares beside it where they are known."""
    held = {r["step"]: r["bank/labels"] for r in log if isinstance(r.get("bank/labels"), list)}
    if not held:
        return None
    share_KE = np.array(list(held.values()), dtype=float).T
    names = [name.replace("_", " ") for name in LABELS]
    training_K = _training_shares(statistics)
    top = max(
        (float(np.nanmax(values)) for values in (share_KE, training_K) if not np.isnan(values).all()),
        default=0.0,
    )
    colors = {"zmin": 0, "zmax": top or 1.0, "colorscale": HEAT_COLORS, "xgap": 1, "ygap": 1}
    bar = {"tickformat": ".0%", "thickness": 12, "outlinewidth": 0, "title": {"text": "share"}}
    ended = "after update %{x}: %{y} %{z:.1%}<extra></extra>"
    plot = over_updates([], "", steps)
    plot["data"] = [
        {"type": "heatmap", "x": list(held), "y": names, "z": share_KE}
        | colors
        | {"colorbar": bar, "hovertemplate": ended, "hoverongaps": False}
    ]
    layout = plot["layout"] | {"height": 420, "hovermode": "closest"}
    for stage in layout["annotations"]:  # a stage's name stands on the cells
        stage["bgcolor"] = "rgba(255, 255, 255, 0.75)"
    layout["yaxis"] = {"type": "category", "autorange": "reversed", "automargin": True, "showline": False}
    # Cells are wider than the updates that they stand for: the axis takes their width.
    layout["xaxis"] = {"title": {"text": "update"}, "showgrid": False}
    caption = (
        "Share of each finding in the filled slots after each epoch, among what is known of them. A slot is "
        "a blend of images, and so are its labels."
    )
    if not np.isnan(training_K).all():
        layout["xaxis"]["domain"] = [0, TRAINING_DOMAIN[0] - 0.03]
        layout["xaxis2"] = {"domain": list(TRAINING_DOMAIN), "type": "category", "showgrid": False}
        plot["data"].append(
            {"type": "heatmap", "x": ["train"], "y": names, "z": training_K[:, None]}
            | colors
            | {"xaxis": "x2", "showscale": False, "hovertemplate": "%{y} %{z:.1%}<extra></extra>"}
        )
        caption += " On the right the share in the training images."
    return Figure("Memory bank: findings it holds", caption, plot | {"layout": layout}, wide=False)


def _training_shares(statistics: Mapping[str, Any]) -> np.ndarray:
    """Return the share of positives among known training labels [K]; NaN where it is not known."""
    labels = statistics.get("labels") or {}
    positives_K = np.array(labels.get("positives") or [np.nan] * len(LABELS), dtype=float)
    negatives_K = np.array(labels.get("negatives") or [np.nan] * len(LABELS), dtype=float)
    known_K = positives_K + negatives_K
    return np.divide(positives_K, known_K, out=np.full_like(known_K, np.nan), where=known_K > 0)
