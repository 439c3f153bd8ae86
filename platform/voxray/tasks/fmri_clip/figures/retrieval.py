"""What predicted embeddings find among the pictures of a split: recall over K, and a grid of examples.

Shapes: N rows, S pictures (stimuli), D an embedding's width.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.figures import BLUE, GREY, Figure, RunView, Tile
from voxray.data.formats.clip_targets import PREFIX
from voxray.data.formats.pictures import decode_rgb

MAX_ROWS = 1000  # a page does not wait for more rows to be read from the shards
NUM_EACH = 2  # queries among the best, in the middle, among the worst
NUM_FOUND = 5
MAX_SIDE_PX = 160

Take = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Retrieval:
    """Cosines of N predictions with S pictures, which one was seen, its rank from 1, ids of both."""

    cosine_NS: np.ndarray
    seen_N: np.ndarray
    rank_N: np.ndarray
    sample_id: list[str]
    stimulus_id: list[str]
    shown_by: list[str]  # a row of each picture

    @property
    def num_pictures(self) -> int:
        """Return S."""
        return len(self.stimulus_id)


def retrieval_figures(run: RunView) -> list[Figure]:
    """Return recall over K and examples; nothing for predictions without embeddings (clip2fmri), and a
    sentence where the dataset cannot be read.
    """
    if run.take is None or run.columns is None:
        return []
    columns = run.columns()
    if "embedding" not in columns:
        return []
    target = (run.config.get("model") or {}).get("target", "final")
    try:
        found = _retrieve(columns, run.take, PREFIX + target)
        return [_curve(found, run.split), *_grid(found, run.take)]
    except InputError as error:
        return [Figure("What is found", f"It is not shown: {error}")]


def _retrieve(columns: Mapping[str, np.ndarray], take: Take, target: str) -> Retrieval:
    """Let at most MAX_ROWS rows, evenly spaced, look among the pictures that all rows saw."""
    stimulus_N = columns["stimulus_id"].astype(str)
    names, first_S, seen_N = np.unique(stimulus_N, return_index=True, return_inverse=True)
    keep_S = _spread(len(names), MAX_ROWS)
    rows = _spread(len(stimulus_N), MAX_ROWS) if len(keep_S) == len(names) else first_S[keep_S]
    place_S = np.full(len(names), -1)
    place_S[keep_S] = np.arange(len(keep_S))
    shown_by = [str(columns["sample_id"][row]) for row in first_S[keep_S]]
    truth = take(shown_by)
    if target not in truth:
        raise InputError(f"the dataset has no column '{target}'; evaluate the run again on its own dataset")
    cosine_NS = _unit(columns["embedding"][rows]) @ _unit(truth[target]).T
    seen_N = place_S[seen_N[rows]]
    own_N = cosine_NS[np.arange(len(rows)), seen_N]
    rank_N = 1 + (cosine_NS > own_N[:, None]).sum(axis=1)
    ids = [str(columns["sample_id"][row]) for row in rows]
    return Retrieval(cosine_NS, seen_N, rank_N, ids, names[keep_S].tolist(), shown_by)


def _curve(found: Retrieval, split: str) -> Figure:
    size = found.num_pictures
    k = np.unique(np.geomspace(1, size, 60).round().astype(int))
    recall = [float((found.rank_N <= most).mean()) for most in k]
    plot: dict[str, Any] = {
        "data": [
            _line("model", k.tolist(), recall, BLUE, {"width": 3}),
            _line("chance", k.tolist(), (k / size).tolist(), GREY, {"width": 1.5, "dash": "dash"}),
        ],
        "layout": {
            "height": 340,
            "xaxis": {"title": {"text": "K"}, "type": "log"},
            "yaxis": {"title": {"text": "recall at K"}, "range": [0, 1.02]},
        },
    }
    caption = (
        f"Share of {len(found.rank_N):,} rows whose picture is among the K most similar of {size:,}; the "
        "metrics choose among objective.gallery pictures, so they differ where that is another number."
    )
    return Figure(f"Recall at K, {split}", caption, plot, wide=False)


def _line(name: str, x: list[int], y: list[float], color: str, line: dict[str, Any]) -> dict[str, Any]:
    hover = f"K = %{{x}}: %{{y:.1%}} ({name})<extra></extra>"
    line = {"color": color, **line}
    trace = {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y}
    return {**trace, "line": line, "hovertemplate": hover}


def _grid(found: Retrieval, take: Take) -> list[Figure]:
    """Return a row of pictures per example: what was seen, and what the prediction finds."""
    margin_N = found.cosine_NS[np.arange(len(found.seen_N)), found.seen_N] - found.cosine_NS.max(axis=1)
    order_N = np.lexsort((-margin_N, found.rank_N))
    middle = len(order_N) // 2
    examples = [
        *((row, "among the best") for row in order_N[:NUM_EACH]),
        *((row, "in the middle") for row in order_N[middle : middle + NUM_EACH]),
        *((row, "among the worst") for row in order_N[-NUM_EACH:]),
    ]
    top = {int(row): np.argsort(-found.cosine_NS[row], kind="stable")[:NUM_FOUND] for row, _ in examples}
    wanted = sorted({int(s) for row, best in top.items() for s in (found.seen_N[row], *best)})
    columns = take([found.shown_by[s] for s in wanted])
    if "image" not in columns:
        return []
    pictures = {s: _png(image) for s, image in zip(wanted, columns["image"], strict=True)}
    figures: list[Figure] = []
    for number, (row, where) in enumerate(examples):
        own = int(found.seen_N[row])
        tiles = [Tile(pictures[own], "Seen", (found.stimulus_id[own], found.sample_id[row]))]
        for place, s in enumerate(top[int(row)], 1):
            right = ("the one that was seen",) if s == own else ()
            title = f"{place}: cosine {found.cosine_NS[row, s]:.3f}"
            tiles.append(Tile(pictures[int(s)], title, (found.stimulus_id[s], *right)))
        title = f"What is found: rank {found.rank_N[row]:,} of {found.num_pictures:,}, {where}"
        caption = "The five most similar pictures to what is predicted from one row." if number == 0 else ""
        figures.append(Figure(title, caption, tiles=tuple(tiles)))
    return figures


def _png(image: Any) -> bytes:
    """Return a small PNG of a stored picture: PNG bytes, or pixels uint8 [3, H, W]."""
    from PIL import Image

    if isinstance(image, bytes):
        pixels_HWC = decode_rgb(image, "a stored picture")
    else:
        pixels_HWC = np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0))
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _spread(number: int, most: int) -> np.ndarray:
    """Return at most `most` of the places 0 … number - 1, evenly spaced."""
    return np.linspace(0, number - 1, min(most, number)).astype(int)


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    rows_ND = np.asarray(rows_ND, np.float32)
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-8)
