"""`clip.npz` beside raw fMRI files: embeddings of the stimuli, found by nsd_id.

nsd_id int [M] names the pictures; every other array is floating point [M, …], a vector (or several) for each,
e.g. final [M, 768], layer_4 [M, 768].
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from voxray.config.errors import InputError
from voxray.core.clip_tower import PREFIX
from voxray.core.schema import Column
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.npy import ArrayError, NpzArray, index_npz

FILE_NAME = "clip.npz"
ID = "nsd_id"


class RowArray(Protocol):
    """An array in a file, of which one entry at a time is read."""

    @property
    def path(self) -> str:
        """The file, for messages."""
        ...

    @property
    def name(self) -> str:
        """What the array is called in it."""
        ...

    def read_row(self, index: int, num_axes: int = 1) -> np.ndarray:
        """Return entry `index` over all but the last `num_axes` axes. Raises ArrayError."""
        ...


class ClipTargets:
    """The embeddings of a folder's `clip.npz`. Raises InputError for a damaged or inconsistent file."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            arrays = index_npz(path)
            self._index_of = _index_of(path, arrays)
        except ArrayError as error:
            raise InputError(f"'{path}': {error}") from error
        # one dict for all rows, so that it is pickled once
        self._arrays = {f"{PREFIX}{name}": array for name, array in arrays.items() if name != ID}
        num_ids = len(self._index_of)
        for array in self._arrays.values():
            if len(array.shape) < 2 or array.shape[0] != num_ids or np.dtype(array.dtype).kind != "f":
                raise InputError(
                    f"'{path}': '{array.name}' is {array.dtype} {list(array.shape)}, not floating point "
                    f"[{num_ids}, …], a vector per {ID}"
                )

    def columns(self) -> dict[str, Column]:
        """Return the columns that the targets make."""
        return {
            name: Column("float32", tuple(array.shape[1:]), unit="CLIP embedding")
            for name, array in self._arrays.items()
        }

    def add_to(self, row: RawRow) -> RawRow | BadRow:
        """Return the row with targets {column: array} and target_index; BadRow without its stimulus."""
        index = self._index_of.get(row["nsd_id"])
        if index is None:
            missing = f"{self._name} has no embedding of '{row['stimulus_id']}'"
            return BadRow(row["origin"], f"{missing}; add it, or remove the trial")
        return row | {"targets": self._arrays, "target_index": index}


def find_targets(source: Path) -> ClipTargets | None:
    """Return the targets of a folder, if it has any. Raises InputError for a link that leads out of it."""
    path = source / FILE_NAME
    if not path.exists():
        return None
    if not path.resolve().is_relative_to(source.resolve()):
        raise InputError(f"'{path}' leads out of the folder; copy the file into it")
    return ClipTargets(path)


def load_targets(row: RawRow) -> RawRow:
    """Return the row with a float32 column for each of its targets, as many axes as one picture has.

    Raises BadRowError, naming file and trial, for values that are not finite and a file that changed.
    """
    arrays = row.get("targets", {})
    return row | {
        name: read_finite(row, array, row["target_index"], len(array.shape) - 1)
        for name, array in arrays.items()
    }


def read_finite(row: RawRow, array: RowArray, index: int, num_axes: int) -> np.ndarray:
    """Return entry `index` of an array as float32. Raises BadRowError, naming file and trial."""
    try:
        values = array.read_row(index, num_axes).astype(np.float32)
    except (ArrayError, OSError) as error:
        raise BadRowError(f"'{array.path}', {row['origin']}: {error}") from error
    if num_bad := int((~np.isfinite(values)).sum()):
        raise BadRowError(
            f"'{array.path}', {row['origin']}: {num_bad} of {values.size} values of '{array.name}' are not "
            "finite; remove the trial"
        )
    return values


def _index_of(path: Path, arrays: dict[str, NpzArray]) -> dict[int, int]:
    """Return nsd_id → place in the arrays."""
    if ID not in arrays or len(arrays) < 2:
        raise InputError(f"'{path}' must hold '{ID}' and embeddings, it holds {', '.join(arrays)}")
    ids = arrays[ID].read()
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"'{path}': '{ID}' is {ids.dtype} {list(ids.shape)}, not whole numbers [pictures]")
    index_of = {name: index for index, name in enumerate(ids.tolist())}
    if len(index_of) < len(ids):
        raise InputError(f"'{path}': an entry of '{ID}' comes twice; keep one embedding a picture")
    return index_of
