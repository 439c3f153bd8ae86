"""Reading one shard: a memory-mapped Arrow file whose windows are checked before they are first used."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column
from voxray.data.checked import CheckedWindows
from voxray.data.manifest import ShardInfo
from voxray.data.shards import inner_shape

# Longer rows are copied singly: numpy's fancy indexing would make a second copy of them.
COPIED_SINGLY_BYTES = 4096
# With fewer rows per window than this, a call per window costs more than a step per row.
ROWS_WORTH_A_CALL = 8


class ShardError(InputError):
    """A shard that is missing or damaged, whole or in one window; the message names it."""


class Gathered:
    """Arrays that rows are gathered into, one per column.

    A column of equal rows is [num_rows, *shape]. A ragged one is one array [sum of room, *rest]; row i has
    room for `room[name][i]` entries from `starts[name][i]` on, and `lengths[name][i]` of them are its own.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        lengths: dict[str, np.ndarray],
        room: dict[str, np.ndarray],
    ) -> None:
        """Keep the arrays; what they hold is written by `copy_rows`."""
        self.arrays, self.lengths, self.room = arrays, lengths, room
        self.starts = {name: np.cumsum(sizes) - sizes for name, sizes in room.items()}


@dataclass
class RowsOfWindows:
    """Rows to gather: row i is `local[i]` of `windows[which[i]]`, and goes to place `places[i]`.

    Where `which` is -1 the row cannot be used.
    """

    windows: Sequence["OpenWindow"]
    which: np.ndarray
    local: np.ndarray
    places: np.ndarray

    def split(self, sizes: Sequence[int]) -> list["RowsOfWindows"]:
        """Return stretches of the rows, each with places from 0 on."""
        ends = np.cumsum(sizes).tolist()
        return [
            RowsOfWindows(self.windows, self.which[end - n : end], self.local[end - n : end], np.arange(n))
            for n, end in zip(sizes, ends, strict=True)
        ]

    def shares(self, num: int) -> list["RowsOfWindows"]:
        """Return the rows in `num` parts of about equal size, with the places they have."""
        bounds = np.linspace(0, len(self.which), num + 1).astype(int).tolist()
        return [
            RowsOfWindows(self.windows, self.which[a:b], self.local[a:b], self.places[a:b])
            for a, b in pairwise(bounds)
        ]

    def sound(self) -> "RowsOfWindows":
        """Return the rows that can be used."""
        (kept,) = np.nonzero(self.which >= 0)
        if len(kept) == len(self.which):
            return self
        return RowsOfWindows(self.windows, self.which[kept], self.local[kept], self.places[kept])

    def lengths(self, name: str) -> np.ndarray:
        """Return each row's entries of a ragged column, int64 [rows]; 0 for one that cannot be used."""
        offsets = [window.offsets[name] for window in self.windows]
        pairs = zip(self.which.tolist(), self.local.tolist(), strict=True)
        return np.array(
            [offsets[w][row + 1] - offsets[w][row] if w >= 0 else 0 for w, row in pairs], dtype=np.int64
        )


class ShardReader:
    """Rows of one memory-mapped shard. Tensor columns are read through views of the map, without a copy.

    With `info`, each window's hash is checked before its first use; processes of a node share what was.
    """

    def __init__(self, path: Path, info: ShardInfo | None = None) -> None:
        """Map the file and check its footer; no row is read. Raises ShardError when it cannot be used."""
        self.path, self._info = path, info
        try:
            with pa.memory_map(str(path)) as file:
                self._bytes = file.read_buffer()  # a view of the map, which lives on with it
            if info is not None and self._bytes.size != info.bytes:
                raise ShardError(
                    f"shard '{path}' has {self._bytes.size} bytes, its manifest says {info.bytes}; "
                    "prepare the dataset again"
                )
            self._checked = None if info is None else CheckedWindows(path, info)
            if info is not None:
                self._check(len(info.windows) - 1)
            self._file = pa.ipc.open_file(pa.BufferReader(self._bytes))
            self.columns = {field.name: _column(field) for field in self._file.schema}
        except FileNotFoundError:
            raise ShardError(f"shard '{path}' is missing; prepare the dataset again") from None
        except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError) as error:
            raise ShardError(
                f"shard '{path}' is no shard of voxray or is damaged ({error}); see `voxray data verify`"
            ) from None
        self._windows: list[OpenWindow | None] = [None] * self._file.num_record_batches
        self._starts = self._window_starts()

    @property
    def num_rows(self) -> int:
        """Rows in the shard."""
        return int(self._starts[-1])

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return rows in the given order, as fresh arrays, for all columns or the given ones.

        A tensor is [len(rows), *shape]; text, encoded and ragged values are object arrays [len(rows)].
        Raises IndexError for a row that is not there, ShardError for a damaged window.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(f"rows must lie in 0..{self.num_rows - 1}, got {rows.min()}..{rows.max()}")
        index = np.searchsorted(self._starts, rows, side="right") - 1
        local = rows - self._starts[index]
        opened, which = np.unique(index, return_inverse=True)
        wanted = RowsOfWindows([self.window(i) for i in opened.tolist()], which, local, np.arange(len(rows)))
        chosen = {name: self.columns[name] for name in columns or self.columns}
        lengths = {name: wanted.lengths(name) for name, column in chosen.items() if column.ragged}
        arrays = {
            name: empty_column(column, int(lengths[name].sum()) if name in lengths else len(rows))
            for name, column in chosen.items()
        }
        out = Gathered(arrays, lengths, lengths)
        copy_rows(wanted, out, chosen)
        for name, sizes in lengths.items():
            pieces = np.empty(len(rows), dtype=object)
            for row, (start, size) in enumerate(zip(out.starts[name].tolist(), sizes.tolist(), strict=True)):
                pieces[row] = out.arrays[name][start : start + size]
            out.arrays[name] = pieces
        return out.arrays

    def window(self, index: int) -> "OpenWindow":
        """Return a window, checked at its first use. Raises ShardError when it is damaged."""
        window = self._windows[index]
        if window is None:
            self._check(index)
            window = self._windows[index] = OpenWindow(self._file.get_batch(index), self.columns)
        return window

    # --- windows
    def _window_starts(self) -> np.ndarray:
        """Return the first row of each window, and after the last one the number of rows."""
        if self._info is not None:
            return np.array([0, *(window.end_row for window in self._info.windows[:-1])])
        counts = [self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches)]
        return np.cumsum([0, *counts])

    def _check(self, index: int) -> None:
        """Check a window's bytes, unless a process of this node has. Raises ShardError when they differ."""
        if self._info is None or self._checked is None or index in self._checked:
            return
        window = self._info.windows[index]
        start = self._info.windows[index - 1].end_byte if index else 0
        data = self._bytes.slice(start, window.end_byte - start)
        if xxhash.xxh3_128_hexdigest(data) != window.xxh3:
            first = self._info.windows[index - 1].end_row if index else 0
            which = f"rows {first} to {window.end_row - 1}" if window.end_row > first else "the footer"
            raise ShardError(
                f"shard '{self.path}' is damaged in {which}: the hash is not the manifest's; "
                "prepare the dataset again"
            )
        self._checked.add(index)


class OpenWindow:
    """One record batch: numpy views of its tensors, the offsets of its ragged columns, its texts."""

    def __init__(self, batch: pa.RecordBatch, columns: Mapping[str, Column]) -> None:
        """Make the views; nothing is copied."""
        self.batch = batch
        self.views: dict[str, np.ndarray] = {}
        self.offsets: dict[str, list[int]] = {}
        self._data: dict[str, memoryview] = {}
        for name, column in columns.items():
            array = batch.column(name)
            if not column.is_tensor:
                _, offsets, data = array.buffers()
                kind = np.int32 if column.dtype == TEXT else np.int64
                self.offsets[name] = np.frombuffer(offsets, kind, len(array) + 1).tolist()
                self._data[name] = memoryview(data or b"")
                continue
            if column.ragged:
                self.offsets[name] = array.offsets.to_numpy(zero_copy_only=True).tolist()
                array = array.values
            inner = inner_shape(column)
            flat = array.values if inner else array
            self.views[name] = flat.to_numpy(zero_copy_only=True).reshape(-1, *inner)

    def bytes_of(self, name: str, row: int) -> bytes:
        """Return one value of a text or encoded column, as bytes."""
        offsets = self.offsets[name]
        return self._data[name][offsets[row] : offsets[row + 1]].tobytes()


def copy_rows(rows: RowsOfWindows, out: Gathered, columns: Mapping[str, Column]) -> None:
    """Write rows into `out`, for the given columns; the rest of a ragged row's room becomes zero."""
    triples = list(zip(rows.places.tolist(), rows.which.tolist(), rows.local.tolist(), strict=True))
    is_sparse = len(triples) < ROWS_WORTH_A_CALL * len(rows.windows)
    for name, column in columns.items():
        array = out.arrays[name]
        if not column.is_tensor:
            is_text = column.dtype == TEXT
            for place, window, row in triples:
                value = rows.windows[window].bytes_of(name, row)
                array[place] = value.decode() if is_text else value
            continue
        views = [window.views[name] for window in rows.windows]
        if column.ragged:
            _copy_ragged(rows, name, triples, out)
        elif is_sparse or (views and views[0][:1].nbytes >= COPIED_SINGLY_BYTES):
            for place, window, row in triples:
                array[place] = views[window][row]
        else:
            for window, view in enumerate(views):
                (inside,) = np.nonzero(rows.which == window)
                array[rows.places[inside]] = view[rows.local[inside]]


def _copy_ragged(rows: RowsOfWindows, name: str, triples: list[tuple[int, int, int]], out: Gathered) -> None:
    array = out.arrays[name]
    views = [window.views[name] for window in rows.windows]
    offsets = [window.offsets[name] for window in rows.windows]
    starts, room = out.starts[name].tolist(), out.room[name].tolist()
    for place, window, row in triples:
        first, last = offsets[window][row], offsets[window][row + 1]
        start = starts[place]
        array[start : start + last - first] = views[window][first:last]
        array[start + last - first : start + room[place]] = 0


def empty_column(column: Column, num: int) -> np.ndarray:
    """Return an array of `num` rows of a column, or of `num` entries of a ragged one."""
    return np.empty((num, *inner_shape(column)), dtype=column.dtype if column.is_tensor else object)


def _column(field: pa.Field) -> Column:
    text: dict[str, Any] = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(
        text["dtype"],
        tuple(json.loads(text["shape"])),
        text["unit"],
        tuple(json.loads(text["names"])),
        json.loads(text["ragged"]),
    )
