"""Hyperspectral cubes as single files without a table: HDF5 and `.npy` below a folder → raw rows.

A cube is [bands, height, width]. The folder that a file lies in, directly below the source, is its patient; a
file that lies in none is a patient of its own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.cube_hdf5 import MAX_ARRAY_BYTES, to_float32
from voxray.data.formats.hypercube import CUBE
from voxray.data.formats.npy import ArrayError, decode_npy, read_header

HDF5_SUFFIXES = (".h5", ".hdf5")
NPY_SUFFIX = ".npy"


def read_cube_files(source: Path, dataset: str = CUBE) -> Iterator[RawRow | BadRow]:
    """Yield a raw row per file, by path; no file is opened.

    A row has sample_id (the path below `source`), patient_id, label and rgb_path (blank), path, dataset (of
    an HDF5 file) and bands (None): what `load_hypercube` takes for HDF5, `load_npy_cube` for `.npy`.

    Raises InputError when `source` is no folder or holds no such file.
    """
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the cubes")
    suffixes = (*HDF5_SUFFIXES, NPY_SUFFIX)
    paths = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(source)
        for name in names
        if name.lower().endswith(suffixes)
    )
    if not paths:
        raise InputError(f"'{source}' holds no cube; files end in {', '.join(suffixes)}")
    root = source.resolve()
    for path in paths:
        name = path.relative_to(source)
        if not path.resolve().is_relative_to(root):
            yield BadRow(name.as_posix(), f"it is a link out of '{source}'; put the file itself there")
            continue
        yield {
            "sample_id": name.as_posix(),
            "patient_id": name.parts[0] if len(name.parts) > 1 else name.stem,
            "label": "",
            "path": str(path),
            "rgb_path": "",
            "dataset": dataset,
            "bands": None,
            "origin": name.as_posix(),
        }


def npy_cube_size(row: RawRow, band_axis: int = 0) -> tuple[int, int]:
    """Return height and width of an NPY cube in pixels, from its header. Raises BadRowError."""
    try:
        with open(row["path"], "rb") as file:
            shape = list(read_header(file).shape)
    except (ArrayError, OSError) as error:
        raise BadRowError(f"'{row['path']}': {error}") from error
    if len(shape) != 3:
        raise BadRowError(f"'{row['path']}' has the shape {shape}; a cube has 3 axes")
    del shape[band_axis]
    return shape[0], shape[1]


def load_npy_cube(row: RawRow, band_axis: int = 0) -> RawRow:
    """Return the row with cube float32 [bands, height, width]; `band_axis` is where the file has its bands.

    Raises BadRowError, naming the file, when it is missing, cut short, of another kind, or holds values that
    are not finite.
    """
    path = Path(row["path"])
    try:
        if (num_bytes := path.stat().st_size) > MAX_ARRAY_BYTES:
            raise ArrayError(f"it has {num_bytes:,} bytes; up to {MAX_ARRAY_BYTES:,} are read")
        values = decode_npy(path.read_bytes())
    except (ArrayError, OSError) as error:
        raise BadRowError(f"'{path}': {error}") from error
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "biuf":
        raise BadRowError(
            f"'{path}' holds {values.dtype} of the shape {list(values.shape)}; a cube has numbers on 3 axes"
        )
    return row | {"cube": to_float32(np.moveaxis(values, band_axis, 0), f"'{path}'")}
