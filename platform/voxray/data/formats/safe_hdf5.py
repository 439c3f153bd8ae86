"""Reading foreign HDF5 files without following them anywhere: no links, no storage elsewhere, numbers only.

HDF5 follows external links, external raw storage and virtual datasets out of the folder by itself, so each
object is asked what it is before it is opened or read. All functions raise ValueError with the reason and the
mend; the caller adds the file's name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open a file read-only and without a lock, so that a read-only folder will do."""
    with damage_named(), h5py.File(path, "r", locking=False) as file:
        yield file


@contextmanager
def damage_named() -> Iterator[None]:
    """Turn what h5py raises on missing, truncated or damaged bytes into a ValueError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0].strip("'\"") or type(error).__name__
        raise ValueError(f"cannot be read: {reason}; copy or download the file again") from error


def child_group(parent: h5py.Group, name: str) -> h5py.Group:
    """Return the group `name` that lies in `parent` itself."""
    return _child(parent, name, h5py.Group, "group")


def child_array(parent: h5py.Group, name: str, kinds: str) -> h5py.Dataset:
    """Return the dataset `name`, unread, whose numpy dtype kind is one of `kinds`, e.g. `iu` or `f`."""
    dataset = _child(parent, name, h5py.Dataset, "dataset")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"'{name}' keeps its values in other files; such data is refused, store them inside")
    if dataset.dtype.kind not in kinds:
        wanted = " or ".join({"f": "floats", "i": "whole numbers"}[kind] for kind in kinds if kind in "fi")
        raise ValueError(f"'{name}' has the type {dataset.dtype}; {wanted} are needed")
    return dataset


def whole_attribute(owner: h5py.Group, name: str) -> int:
    """Return the attribute `name`, which must be one whole number."""
    if name not in owner.attrs:
        raise ValueError(f"the attribute '{name}' is missing; add it")
    value = np.asarray(owner.attrs[name])
    if value.size != 1 or value.dtype.kind not in "iuf" or value.item() != np.floor(value.item()):
        raise ValueError(f"the attribute '{name}' must be one whole number, not {value.tolist()!r:.60}")
    return int(value.item())


def _child(parent: h5py.Group, name: str, kind: type, what: str) -> Any:
    link: Any = parent.get(name, getlink=True)
    if link is None:
        here = ", ".join(sorted(parent)) or "nothing"
        raise ValueError(f"the {what} '{name}' is missing; '{parent.name}' holds {here}")
    if not isinstance(link, h5py.HardLink):
        target = getattr(link, "filename", "this file")
        raise ValueError(
            f"'{name}' is a link to '{link.path}' in '{target}'; links are refused, copy the data in"
        )
    child = parent[name]
    if not isinstance(child, kind):
        raise ValueError(f"'{name}' is no {what}")
    return child
