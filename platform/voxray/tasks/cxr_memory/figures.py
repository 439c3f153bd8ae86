"""What a person wants to look at: AUROC per finding beside the floor, and images with predictions."""

import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from voxray.core.figures import BLUE, GREY, VERMILLION, Figure, Predictions, RunView, Tile
from voxray.tasks.cxr_memory.config import LABELS

NUM_TILES = 4  # images per row of the grid
NUM_TOP = 3  # predictions named below an image
MAX_SIDE_PX = 256  # larger images are shrunk: a report is a page, not an archive


def figures(run: RunView) -> list[Figure]:
    """Return the figures of one evaluated split: AUROC per finding, then three rows of images."""
    shown = [_auroc_figure(run)] if run.evaluation.get("table") else []
    if run.predictions is not None and run.take is not None and len(run.predictions.sample_id):
        shown += _image_figures(run, run.predictions)
    return shown


def _auroc_figure(run: RunView) -> Figure:
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


def _image_figures(run: RunView, predictions: Predictions) -> list[Figure]:
    """Return pictures of what was found, wrongly claimed and missed; at most one per finding each."""
    present, absent = predictions.labels_NK == 1, predictions.labels_NK == 0
    scores = predictions.scores_NK
    kinds = [
        ("Hits", "Findings that are labelled, with the highest probabilities.", _extremes(scores, present)),
        (
            "False alarms",
            "Labelled absent, yet given the highest probabilities.",
            _extremes(scores, absent),
        ),
        ("Misses", "Findings that are labelled, with the lowest probabilities.", _extremes(-scores, present)),
    ]
    wanted = sorted({row for _, _, chosen in kinds for row, _ in chosen})
    ids = [predictions.sample_id[row] for row in wanted]
    assert run.take is not None
    images = dict(zip(wanted, run.take(ids)["image"], strict=True)) if wanted else {}
    rule = " At most one image per finding, ranked by the model's probability; no threshold is applied."
    return [
        Figure(
            title,
            caption + rule,
            tiles=tuple(_tile(predictions, images, row, label) for row, label in chosen),
        )
        for title, caption, chosen in kinds
        if chosen
    ]


def _extremes(scores_NK: np.ndarray, allowed_NK: np.ndarray) -> list[tuple[int, int]]:
    """Return up to NUM_TILES (row, label) of the highest allowed scores: each row and each label once."""
    order = np.argsort(np.where(allowed_NK, -scores_NK, np.inf), axis=None, kind="stable")[
        : int(allowed_NK.sum())
    ]
    chosen: list[tuple[int, int]] = []
    for flat in order:
        row, label = divmod(int(flat), scores_NK.shape[1])
        if all(row != other and label != taken for other, taken in chosen):
            chosen.append((row, label))
        if len(chosen) == NUM_TILES:
            break
    return chosen


def _tile(predictions: Predictions, images: Mapping[int, np.ndarray], row: int, label: int) -> Tile:
    scores, labels = predictions.scores_NK[row], predictions.labels_NK[row]
    top = np.argsort(-scores, kind="stable")[:NUM_TOP]
    known = ", ".join(LABELS[k] for k in np.flatnonzero(labels == 1))
    nothing = "none" if not np.isnan(labels).any() else "none known"
    return Tile(
        png=_png(images[row]),
        title=f"{LABELS[label]}: p = {scores[label]:.2f}",
        lines=(
            f"Labels: {known or nothing}",
            "Highest: " + ", ".join(f"{LABELS[k]} {scores[k]:.2f}" for k in top),
            predictions.sample_id[row],
        ),
    )


def _png(image_1HW: np.ndarray) -> bytes:
    """Encode a uint8 image [1, H, W] as grey PNG, at most MAX_SIDE_PX wide and high."""
    from PIL import Image

    picture = Image.fromarray(image_1HW[0])
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
