"""One numeric array out of an HDF5 file, read-only, and nothing that lies outside that file.

A path's links are looked at before they are followed: external links, soft links, virtual datasets and raw
storage in other files are refused, and so are object, reference and compound types. HDF5 itself notices files
that were cut short when it opens them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue] - not in its type stubs

from voxray.core.task import BadRowError

# A header of a few bytes can claim any size; a cube of 30 × 500 × 500 float64 has 60 MB.
MAX_ARRAY_BYTES = 8 * 2**30
_NUMBERS = "biuf"


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open a file for reading. Whatever goes wrong inside becomes BadRowError that names the file."""
    try:
        with h5py.File(path, "r", locking=False) as file:  # read-only folders have no locks
            yield file
    except BadRowError:
        raise
    except Exception as error:  # HDF5 and its filters raise many kinds on damaged bytes
        raise BadRowError(
            f"'{path}' cannot be read as HDF5: {first_line(error)}; replace the file"
        ) from error


def find_array(file: h5py.File, name: str, num_axes: int) -> h5py.Dataset:
    """Return the dataset `name` (`/Group/Name`), checked but not read.

    Raises BadRowError when it is missing, not numeric, has other axes than `num_axes`, is empty, claims more
    than 8 GiB, or its data is elsewhere than in this file.
    """
    node: Any = file
    for part in name.strip("/").split("/"):
        node = _step(file, node, part, name)
    if not isinstance(node, h5py.Dataset):
        raise BadRowError(f"'{file.filename}': '{name}' is a group, not an array; name the dataset in it")
    if problem := _problem(node, num_axes):
        raise BadRowError(f"'{file.filename}': dataset '{name}' {problem}")
    return node


def _step(file: h5py.File, node: Any, part: str, name: str) -> Any:
    if not isinstance(node, h5py.Group) or part not in list(node):
        here = ", ".join(sorted(node)) if isinstance(node, h5py.Group) else "an array"
        raise BadRowError(f"'{file.filename}' has no dataset '{name}'; at '{node.name}' it has: {here}")
    kind = node.id.links.get_info(part.encode()).type
    if kind != h5l.TYPE_HARD:
        raise BadRowError(
            f"'{file.filename}': '{part}' of '{name}' is a link, which is not followed; store the data "
            "itself under that name"
        )
    return node[part]


def _problem(dataset: h5py.Dataset, num_axes: int) -> str:
    if dataset.is_virtual or dataset.external:
        return "keeps its data in other files, which are not opened; store the data in this file"
    if dataset.dtype.kind not in _NUMBERS:
        return f"holds {dataset.dtype}, not real numbers; store floats or integers"
    shape = dataset.shape
    if shape is None or len(shape) != num_axes or 0 in shape:
        return f"has the shape {shape}; {num_axes} axes are read, none of them empty"
    num_bytes = int(np.prod([int(size) for size in shape], dtype=object)) * dataset.dtype.itemsize
    if num_bytes > MAX_ARRAY_BYTES:
        return f"claims {num_bytes / 2**30:,.1f} GiB; up to {MAX_ARRAY_BYTES / 2**30:g} GiB are read"
    return ""


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return re.split(r"[\r\n]", str(error))[0] or type(error).__name__
