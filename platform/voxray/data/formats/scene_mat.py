"""Hyperspectral scenes as MAT files (v5, v7.3), with optional ground truth → raw rows, whole or in tiles.

A scene is a file's array `cube`, or its only 3-D numeric array, (rows, cols, bands). `<scene>_gt.mat` beside
`<scene>.mat` or `<scene>_corrected.mat` holds its class map (rows, cols), 0 = unlabelled, the layout of the
public benchmarks (Indian Pines, Salinas, Pavia). Scenes that overlap on the ground under different names, as
SalinasA lies in Salinas, are different groups: keep one of them.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue] - not in its type stubs

from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.cube_hdf5 import MAX_ARRAY_BYTES, find_array, open_hdf5, to_float32
from voxray.data.formats.rows import first_line
from voxray.data.formats.scene_tiles import as_classes, pad, scene_rows

_HEADER_BYTES = 128
_BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
_BYTES_OF = {"double": 8, "single": 4, "logical": 1} | {
    f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class _Array:
    """A numeric array in a MAT file: its name, its class in MATLAB's words, its shape in MATLAB's order."""

    name: str
    kind: str
    shape: tuple[int, ...]


def read_scenes(
    source: Path, tile: int | None = None, variable: str | None = None
) -> Iterator[RawRow | BadRow]:
    """Return a raw row per scene, or per tile of `tile` × `tile` pixels; only the files' headers are read.

    A row has sample_id, scene (the group: the path below `source` without `_corrected` and suffix), path,
    variable, labels_path and labels_variable (blank without ground truth), top, left, height, width (pixels).
    Tiles do not overlap; those at the lower and right edge reach over it, and `load_scene` pads them.
    `variable` names the cubes' array where it is not found as said above.

    Raises InputError when there is no MAT file or `tile` is below 1.
    """
    return scene_rows(source, ".mat", lambda path, truth: _scene(source, path, variable, truth), tile)


def load_scene(row: RawRow) -> RawRow:
    """Return the row with cube float32 [bands, height, width], labels int16 and valid bool [height, width].

    The cube has the file's values, not scaled. Labels are 0 where unlabelled and without ground truth.
    Outside the scene (a tile at its edge) cube and labels are 0 and valid is False.

    Raises BadRowError, naming the file, when it is missing, cut short, damaged, keeps its data elsewhere,
    holds complex or non-finite values, or labels that are no classes.
    """
    window = (row["top"], row["left"], row["height"], row["width"])
    crop = np.moveaxis(_read_window(row["path"], row["variable"], 3, window), -1, 0)
    cube = pad(to_float32(crop, f"'{row['path']}'"), row)
    valid = pad(np.ones(crop.shape[1:], dtype=bool), row)
    labels = np.zeros(crop.shape[1:], dtype=np.int16)
    if row["labels_path"]:
        labels = as_classes(
            row["labels_path"], _read_window(row["labels_path"], row["labels_variable"], 2, window)
        )
    return row | {"cube": cube, "labels": pad(labels, row), "valid": valid}


# --- what there is
# ------------------------------------------------------------------------------------------------------------


def _scene(source: Path, path: Path, variable: str | None, truth: Path | None) -> RawRow:
    cube = _choose(path, _list_arrays(source, path), 3, variable or "cube", required=variable is not None)
    row: RawRow = {
        "sample_id": path.relative_to(source).with_suffix("").as_posix(),
        "path": str(path),
        "variable": cube.name,
        "labels_path": "",
        "labels_variable": "",
        "top": 0,
        "left": 0,
        "height": cube.shape[0],
        "width": cube.shape[1],
    }
    if truth is None:
        return row
    labels = _choose(truth, _list_arrays(source, truth), 2, "gt", required=False)
    if labels.shape != cube.shape[:2]:
        raise BadRowError(
            f"ground truth '{truth}' has {labels.shape[0]} × {labels.shape[1]} pixels, the scene "
            f"{cube.shape[0]} × {cube.shape[1]}; take the map of this scene, or transpose it"
        )
    return row | {"labels_path": str(truth), "labels_variable": labels.name}


def _choose(path: Path, arrays: Sequence[_Array], num_axes: int, wanted: str, required: bool) -> _Array:
    """Return the array named `wanted`, or, unless that is `required`, the only one with so many axes."""
    fitting = [array for array in arrays if len(array.shape) == num_axes and min(array.shape) > 0]
    named = [array for array in fitting if array.name == wanted]
    if named:
        return named[0]
    if len(fitting) == 1 and not required:
        return fitting[0]
    held = ", ".join(f"{a.name} {'×'.join(map(str, a.shape))} {a.kind}" for a in arrays) or "no numeric array"
    what = f"'{wanted}'" if required else f"'{wanted}', and not exactly one"
    raise BadRowError(
        f"'{path}' has no {num_axes}-D numeric array {what}; it holds {held}; name the "
        "array, or move the file away"
    )


def _list_arrays(source: Path, path: Path) -> list[_Array]:
    """Return the numeric arrays of a file. Structs, cells, objects and the like are not opened."""
    if not path.resolve().is_relative_to(source.resolve()):
        raise BadRowError(f"'{path}' is a link out of '{source}'; put the file itself there")
    if not path.is_file():
        raise BadRowError(f"'{path}' is no file; remove it")
    return _list_v73(path) if h5py.is_hdf5(path) else _list_v5(path)


# --- v5, by scipy
# ------------------------------------------------------------------------------------------------------------


def _list_v5(path: Path) -> list[_Array]:
    import scipy.io

    _check_whole(path)
    try:
        found = scipy.io.whosmat(path)
    except Exception as error:  # scipy raises many kinds on damaged bytes
        raise _damaged(path, error) from error
    arrays = [_Array(name, kind, shape) for name, shape, kind in found if kind in _BYTES_OF]
    for array in arrays:
        _check_size(path, array)
    return arrays


def _check_whole(path: Path) -> None:
    """Walk the variables' tags (type, byte count) to the end: scipy's listing overlooks a short file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        order = _BYTE_ORDERS.get(header[126:])
        if order is None:
            raise BadRowError(
                f"'{path}' is no MAT file of version 5 or 7.3; save it with `save -v7` or `-v7.3`"
            )
        position = _HEADER_BYTES
        while position < size:
            file.seek(position)
            tag = file.read(8)
            position += 8 + (struct.unpack(f"{order}II", tag)[1] if len(tag) == 8 else size)
    if position > size:
        raise BadRowError(
            f"'{path}' is cut short: {size} bytes are there, its last variable needs more; copy it again"
        )


def _check_size(path: Path, array: _Array) -> None:
    num_bytes = int(np.prod(array.shape, dtype=object)) * _BYTES_OF[array.kind]
    if num_bytes > MAX_ARRAY_BYTES:
        raise BadRowError(
            f"'{path}': '{array.name}' claims {num_bytes / 2**30:,.1f} GiB; up to "
            f"{MAX_ARRAY_BYTES / 2**30:g} GiB are read"
        )


@lru_cache(maxsize=2)  # a scene's tiles come one after the other: its cube and its ground truth
def _load_v5(path: str, name: str, modified_ns: int, num_bytes: int) -> np.ndarray:
    import scipy.io

    try:
        values = scipy.io.loadmat(path, variable_names=[name])[name]
    except Exception as error:
        raise _damaged(path, error) from error
    if values.dtype.kind not in "biuf":
        raise BadRowError(f"'{path}': '{name}' holds {values.dtype}, not real numbers; save its real part")
    values.flags.writeable = False  # the tiles share it
    return values


def _damaged(path: str | Path, error: Exception) -> BadRowError:
    return BadRowError(f"'{path}' cannot be read as MAT: {first_line(error)}; replace the file")


# --- v7.3, by h5py: HDF5 with the axes in reverse
# ------------------------------------------------------------------------------------------------------------


def _list_v73(path: Path) -> list[_Array]:
    arrays = []
    with open_hdf5(path) as file:
        for name in sorted(file):
            if file.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
                raise BadRowError(
                    f"'{path}': '{name}' is a link, which is not followed; save the data itself"
                )
            node: Any = file[name]
            if not isinstance(node, h5py.Dataset) or "MATLAB_empty" in node.attrs:
                continue
            kind = node.attrs.get("MATLAB_class")
            if kind is None:
                raise BadRowError(
                    f"'{path}': MATLAB did not write '{name}' (no MATLAB_class), so the order of its axes is "
                    "unknown; save the file with MATLAB or scipy, or list it in a table as a hypercube"
                )
            kind = kind.decode() if isinstance(kind, bytes) else str(kind)
            if kind in _BYTES_OF:
                find_array(file, name, num_axes=len(node.shape))
                arrays.append(_Array(name, kind, node.shape[::-1]))
    return arrays


# --- one window
# ------------------------------------------------------------------------------------------------------------


def _read_window(path: str, name: str, num_axes: int, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the part of the window that lies in the scene: (rows, cols) or (rows, cols, bands)."""
    top, left, height, width = window
    rows, cols = slice(top, top + height), slice(left, left + width)
    if h5py.is_hdf5(path):
        with open_hdf5(path) as file:
            return find_array(file, name, num_axes)[..., cols, rows].T
    try:
        status = os.stat(path)
    except OSError as error:
        raise _damaged(path, error) from error
    return _load_v5(path, name, status.st_mtime_ns, status.st_size)[rows, cols]
