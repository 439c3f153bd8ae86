"""Images with what the model says about them: hits, false alarms and misses.

Shapes: N images, K findings, H × W pixels.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from voxray.core.figures import Figure, Predictions, Tile
from voxray.tasks.cxr_memory.config import LABELS

NUM_TILES = 4  # images per row of the grid
NUM_TOP = 3  # predictions named below an image
MAX_SIDE_PX = 256  # larger images are shrunk: a report is a page, not an archive

Take = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def image_figures(predictions: Predictions, take: Take) -> list[Figure]:
    """Return pictures of what was found, wrongly claimed and missed; at most one per finding each."""
    present, absent = predictions.labels_NK == 1, predictions.labels_NK == 0
    scores = predictions.scores_NK
    kinds = [
        ("Hits", "Findings that are labelled, with the highest probabilities.", extremes(scores, present)),
        (
            "False alarms",
            "Labelled absent, yet given the highest probabilities.",
            extremes(scores, absent),
        ),
        ("Misses", "Findings that are labelled, with the lowest probabilities.", extremes(-scores, present)),
    ]
    wanted = sorted({row for _, _, chosen in kinds for row, _ in chosen})
    ids = [predictions.sample_id[row] for row in wanted]
    images = dict(zip(wanted, take(ids)["image"], strict=True)) if wanted else {}
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


def extremes(scores_NK: np.ndarray, allowed_NK: np.ndarray) -> list[tuple[int, int]]:
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
    return Tile(
        png=png(images[row]),
        title=f"{LABELS[label]}: p = {predictions.scores_NK[row, label]:.2f}",
        lines=image_lines(predictions, row),
    )


def image_lines(predictions: Predictions, row: int) -> tuple[str, ...]:
    """Return what stands below an image: its labels, the highest probabilities, its id."""
    scores, labels = predictions.scores_NK[row], predictions.labels_NK[row]
    top = np.argsort(-scores, kind="stable")[:NUM_TOP]
    known = ", ".join(LABELS[k] for k in np.flatnonzero(labels == 1))
    nothing = "none" if not np.isnan(labels).any() else "none known"
    return (
        f"Labels: {known or nothing}",
        "Highest: " + ", ".join(f"{LABELS[k]} {scores[k]:.2f}" for k in top),
        predictions.sample_id[row],
    )


def png(image_1HW: np.ndarray) -> bytes:
    """Encode a uint8 image [1, H, W] as grey PNG, at most MAX_SIDE_PX wide and high."""
    from PIL import Image

    picture = Image.fromarray(image_1HW[0])
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def unknown_png() -> bytes:
    """Return a plain grey picture, for an image that is not at hand."""
    return png(np.full((1, MAX_SIDE_PX, MAX_SIDE_PX), 200, np.uint8))
