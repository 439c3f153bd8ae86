"""One numeric array out of an HDF5 file as float32, for cubes and scenes, on top of `safe_hdf5`."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from voxray.core.task import BadRowError
from voxray.data.formats import safe_hdf5

# A header of a few bytes can claim any size; a cube of 30 × 500 × 500 float64 has 60 MB.
MAX_ARRAY_BYTES = 8 * 2**30
_NUMBERS = "biuf"


@contextmanager
def open_hdf5(path: str | Path) -> Generator[h5py.File]:
    """Open a file for reading. Whatever goes wrong inside becomes BadRowError that names the file."""
    try:
        with safe_hdf5.open_hdf5(path) as file:
            yield file
    except ValueError as error:
        raise BadRowError(f"'{path}': {error}") from error


def find_array(file: h5py.File, name: str, num_axes: int) -> h5py.Dataset:
    """Return the dataset `name` (`/Group/Name`), checked but not read.

    Raises ValueError when it is missing, not numeric, has other axes than `num_axes`, is empty, claims more
    than 8 GiB, or its data is elsewhere than in this file.
    """
    *groups, last = name.strip("/").split("/")
    node: h5py.Group = file
    for group in groups:
        node = safe_hdf5.child_group(node, group)
    dataset = safe_hdf5.child_array(node, last, _NUMBERS)
    shape = dataset.shape
    if shape is None or len(shape) != num_axes or 0 in shape:
        raise ValueError(f"'{name}' has the shape {shape}; {num_axes} axes are read, none of them empty")
    num_bytes = int(np.prod([int(size) for size in shape], dtype=object)) * dataset.dtype.itemsize
    if num_bytes > MAX_ARRAY_BYTES:
        claimed, allowed = num_bytes / 2**30, MAX_ARRAY_BYTES / 2**30
        raise ValueError(f"'{name}' claims {claimed:,.1f} GiB; up to {allowed:g} GiB are read")
    return dataset


def to_float32(values: np.ndarray, where: str) -> np.ndarray:
    """Return C-contiguous float32. Raises BadRowError for NaN, infinity, and what float32 cannot hold."""
    with np.errstate(over="ignore"):
        cube = np.ascontiguousarray(values, dtype=np.float32)
    num_bad = cube.size - int(np.count_nonzero(np.isfinite(cube)))
    if num_bad:
        raise BadRowError(
            f"{where} holds {num_bad} of {cube.size} values that are not finite float32 numbers; write 0 for "
            "background, or leave the row out"
        )
    return cube
