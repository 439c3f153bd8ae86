"""What readers of hyperspectral scenes share: finding them, tiles of a scene, their padding, class maps.

`<scene>_gt` beside `<scene>` or `<scene>_corrected` is its ground truth, as in the public benchmarks.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow

_GROUND_TRUTH = re.compile(r"(?i)_gt$")
_VARIANT = re.compile(r"(?i)_corrected$")
_MAX_CLASS = int(np.iinfo(np.int16).max)


def scene_rows(
    source: Path, suffix: str, describe: Callable[[Path, Path | None], RawRow], tile: int | None
) -> Iterator[RawRow | BadRow]:
    """Yield a row per scene below `source`, or per tile of `tile` × `tile` pixels.

    `describe` gives a scene's row from its file and that of its ground truth (None: there is none); added
    here are scene (the group: the path below `source` without `_corrected` and suffix) and origin.

    Raises InputError when there is no file with that suffix or `tile` is below 1.
    """
    if tile is not None and tile < 1:
        raise InputError(f"tile {tile} must be at least 1 pixel")
    files = _files(source, suffix)
    truths = {_base(path): path for path in files if _GROUND_TRUTH.search(path.stem)}
    scenes = [path for path in files if not _GROUND_TRUTH.search(path.stem)]
    for path in scenes:
        origin, base = path.relative_to(source).as_posix(), _base(path)
        try:
            row = describe(path, truths.get(base))
        except BadRowError as error:
            yield BadRow(origin, str(error))
        else:
            scene = base.relative_to(source).as_posix()
            yield from tiles(row | {"scene": scene, "origin": origin}, tile)
    for base in sorted(truths.keys() - {_base(path) for path in scenes}):
        reason = f"no scene '{base.name}{suffix}' lies beside this ground truth; add it or rename one"
        yield BadRow(truths[base].relative_to(source).as_posix(), reason)


def _files(source: Path, suffix: str) -> list[Path]:
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the scenes' {suffix} files")
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(source)
        for name in names
        if name.lower().endswith(suffix)
    ]
    if not found:
        raise InputError(
            f"'{source}' holds no file *{suffix} (linked folders are not searched); add the scenes"
        )
    return sorted(found)


def _base(path: Path) -> Path:
    """Return the path that a scene, its corrected variant and its ground truth share, without suffix."""
    return path.with_name(_VARIANT.sub("", _GROUND_TRUTH.sub("", path.stem)))


def tiles(row: RawRow, tile: int | None) -> Iterator[RawRow]:
    """Yield the scene's row, or one per tile: top, left, height, width in pixels, sample_id and origin.

    Tiles do not overlap; those at the lower and right edge reach over it.
    """
    if tile is None:
        yield row
        return
    for top in range(0, row["height"], tile):
        for left in range(0, row["width"], tile):
            place = {"top": top, "left": left, "height": tile, "width": tile}
            yield (
                row
                | place
                | {
                    "sample_id": f"{row['sample_id']}:{top}:{left}",
                    "origin": f"{row['origin']} tile at row {top}, column {left}",
                }
            )


def window(row: RawRow) -> tuple[slice, slice]:
    """Return which rows and columns of its cube a raw row is; all of them where it is no tile."""
    if "top" not in row:
        return slice(None), slice(None)
    return slice(row["top"], row["top"] + row["height"]), slice(row["left"], row["left"] + row["width"])


def pad(values: np.ndarray, row: RawRow) -> np.ndarray:
    """Return [..., height, width], filled up with 0 below and to the right."""
    missing = [(0, 0)] * (values.ndim - 2) + [
        (0, row["height"] - values.shape[-2]),
        (0, row["width"] - values.shape[-1]),
    ]
    return np.pad(values, missing)


def as_classes(path: str, values: np.ndarray) -> np.ndarray:
    """Return int16: programs keep class numbers as doubles where nobody asked for another type.

    Raises BadRowError for what is no whole number from 0 to 32,767.
    """
    with np.errstate(invalid="ignore"):
        classes = values.astype(np.int16)
    if not (np.array_equal(classes, values) and (values >= 0).all() and (values <= _MAX_CLASS).all()):
        raise BadRowError(
            f"ground truth '{path}' holds values that are no classes; write whole numbers from 0 "
            f"(unlabelled) to {_MAX_CLASS}"
        )
    return classes
