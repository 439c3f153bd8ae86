"""Cubes as they are looked at: the truth, what was hidden, what the model made of it. No torch here.

Shapes: C bands, H × W pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

_TILE = re.compile(r"(.+):(\d+):(\d+)")  # of a scene: its name, and the tile's first row and column


@dataclass(frozen=True)
class Shown:
    """One cube; `made` and `hidden` are None for a head on the encoder, `predicted` (classes) without one.

    Classes are 0 where unlabelled. `rgb` is the photograph's PNG file, empty without one.
    """

    sample_id: str
    wavelengths_C: np.ndarray
    true_CHW: np.ndarray
    measured_HW: np.ndarray
    classes_HW: np.ndarray
    made_CHW: np.ndarray | None = None
    hidden_CHW: np.ndarray | None = None
    predicted_HW: np.ndarray | None = None
    rgb: bytes = b""


def is_tile(sample_id: str) -> bool:
    """Tell whether a sample is a tile of a scene."""
    return _TILE.fullmatch(sample_id) is not None


def stitched(shown: Sequence[Shown]) -> list[Shown]:
    """Return scenes put together from their tiles, in the order of their names; what no tile covers is not
    measured. Samples that are no tiles stay as they are.
    """
    whole = [each for each in shown if not is_tile(each.sample_id)]
    scenes: dict[str, list[tuple[int, int, Shown]]] = {}
    for each in shown:
        if found := _TILE.fullmatch(each.sample_id):
            scenes.setdefault(found[1], []).append((int(found[2]), int(found[3]), each))
    return whole + [_scene(name, tiles) for name, tiles in sorted(scenes.items())]


def _scene(name: str, tiles: list[tuple[int, int, Shown]]) -> Shown:
    first = tiles[0][2]
    tile_height, tile_width = first.measured_HW.shape
    top, left = min(row for row, _, _ in tiles), min(column for _, column, _ in tiles)
    height = max(row for row, _, _ in tiles) + tile_height - top
    width = max(column for _, column, _ in tiles) + tile_width - left

    def together(key: str) -> np.ndarray | None:
        sample = getattr(first, key)
        if sample is None:
            return None
        canvas = np.zeros((*sample.shape[:-2], height, width), sample.dtype)
        for row, column, each in tiles:
            place = np.s_[
                ..., row - top : row - top + tile_height, column - left : column - left + tile_width
            ]
            canvas[place] = getattr(each, key)
        return canvas

    keys = ("true_CHW", "measured_HW", "classes_HW", "made_CHW", "hidden_CHW", "predicted_HW")
    return replace(first, sample_id=name, **{key: together(key) for key in keys})
