"""Reading one shard: a memory-mapped Arrow file whose windows are checked before they are first used."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from voxray.config.errors import InputError
from voxray.core.schema import Column
from voxray.data.checked import CheckedWindows
from voxray.data.manifest import ShardInfo
from voxray.data.shards import inner_shape

# Longer rows are copied singly: numpy's fancy indexing would make a second copy of them.
COPIED_SINGLY_BYTES = 4096


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
        """Keep the arrays; what they hold is written by `ShardReader.take_into`."""
        self.arrays, self.lengths, self.room = arrays, lengths, room
        self.starts = {name: np.cumsum(sizes) - sizes for name, sizes in room.items()}


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
        self._windows: list[_Window | None] = [None] * self._file.num_record_batches
        self._starts = self._window_starts()

    @property
    def num_rows(self) -> int:
        """Rows in the shard."""
        return int(self._starts[-1])

    @property
    def ragged(self) -> list[str]:
        """The ragged columns."""
        return [name for name, column in self.columns.items() if column.ragged]

    def lengths(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return how many entries the given rows of a ragged column have, int64 [len(rows)]."""
        out = np.empty(len(rows), np.int64)
        for window, inside, local in self._pieces(rows):
            offsets = self._window(window).offsets[name]
            out[inside] = offsets[local + 1] - offsets[local]
        return out

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return rows in the given order, as fresh arrays, for all columns or the given ones.

        A tensor is [len(rows), *shape]; text, encoded and ragged values are object arrays [len(rows)].
        Raises IndexError for a row that is not there.
        """
        rows = np.asarray(rows, dtype=np.int64)
        self._check_rows(rows)
        chosen = list(columns or self.columns)
        lengths = {name: self.lengths(name, rows) for name in chosen if self.columns[name].ragged}
        out = Gathered(self.empty(len(rows), lengths, chosen), lengths, lengths)
        self.take_into(out, np.arange(len(rows)), rows)
        for name, sizes in lengths.items():
            pieces = np.empty(len(rows), dtype=object)
            for row, (start, size) in enumerate(zip(out.starts[name].tolist(), sizes.tolist(), strict=True)):
                pieces[row] = out.arrays[name][start : start + size]
            out.arrays[name] = pieces
        return out.arrays

    def empty(
        self, num_rows: int, room: Mapping[str, np.ndarray], columns: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return arrays to take rows into; `room` has each row's entries for the ragged columns."""
        return {
            name: empty_column(self.columns[name], int(room[name].sum()) if name in room else num_rows)
            for name in columns or self.columns
        }

    def take_into(self, out: Gathered, places: np.ndarray, rows: np.ndarray) -> None:
        """Write the given rows at `places` of `out`, for the columns that `out` has; the rest of a ragged
        row's room becomes zero.

        Raises IndexError for a row that is not there, ShardError for a damaged window.
        """
        self._check_rows(rows)
        for index, inside, local in self._pieces(rows):
            window = self._window(index)
            for name, array in out.arrays.items():
                if self.columns[name].ragged:
                    _copy_ragged(window, name, local, out, places[inside])
                else:
                    self._copy(window, name, local, array, places[inside])

    def faults(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Check the windows of the given rows; return message → indices of those that cannot be used."""
        found: dict[str, np.ndarray] = {}
        for index, inside, _ in self._pieces(rows):
            try:
                self._window(index)
            except ShardError as fault:
                found[str(fault)] = inside
        return found

    # --- windows
    def _window_starts(self) -> np.ndarray:
        """Return the first row of each window, and after the last one the number of rows."""
        if self._info is not None:
            return np.array([0, *(window.end_row for window in self._info.windows[:-1])])
        counts = [self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches)]
        return np.cumsum([0, *counts])

    def _window(self, index: int) -> "_Window":
        window = self._windows[index]
        if window is None:
            self._check(index)
            window = self._windows[index] = _Window(self._file.get_batch(index), self.columns)
        return window

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

    def _check_rows(self, rows: np.ndarray) -> None:
        if rows.size and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(f"rows must lie in 0..{self.num_rows - 1}, got {rows.min()}..{rows.max()}")

    def _pieces(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield per window: its index, where its rows go in the result, which of its rows they are."""
        window_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(window_of_row).tolist():
            (places,) = np.nonzero(window_of_row == index)
            yield index, places, rows[places] - self._starts[index]

    def _copy(
        self, window: "_Window", name: str, local: np.ndarray, out: np.ndarray, places: np.ndarray
    ) -> None:
        """Copy rows `local` of one window to `places` of `out`."""
        if not self.columns[name].is_tensor:
            values = window.batch.column(name).take(pa.array(local))
            out[places] = values.to_numpy(zero_copy_only=False)
            return
        view = window.views[name]
        if view[:1].nbytes < COPIED_SINGLY_BYTES:
            out[places] = view[local]
            return
        for place, row in zip(places.tolist(), local.tolist(), strict=True):
            out[place] = view[row]


class _Window:
    """One record batch: numpy views of its tensors, and the offsets of its ragged columns."""

    def __init__(self, batch: pa.RecordBatch, columns: Mapping[str, Column]) -> None:
        self.batch = batch
        self.views: dict[str, np.ndarray] = {}
        self.offsets: dict[str, np.ndarray] = {}
        for name, column in columns.items():
            if not column.is_tensor:
                continue
            array = batch.column(name)
            if column.ragged:
                self.offsets[name] = array.offsets.to_numpy(zero_copy_only=True)
                array = array.values
            inner = inner_shape(column)
            flat = array.values if inner else array
            self.views[name] = flat.to_numpy(zero_copy_only=True).reshape(-1, *inner)


def empty_column(column: Column, num: int) -> np.ndarray:
    """Return an array of `num` rows of a column, or of `num` entries of a ragged one."""
    return np.empty((num, *inner_shape(column)), dtype=column.dtype if column.is_tensor else object)


def _copy_ragged(window: _Window, name: str, local: np.ndarray, out: Gathered, places: np.ndarray) -> None:
    array, view, offsets = out.arrays[name], window.views[name], window.offsets[name]
    starts, room = out.starts[name], out.room[name]
    for place, row in zip(places.tolist(), local.tolist(), strict=True):
        start, first, last = int(starts[place]), int(offsets[row]), int(offsets[row + 1])
        array[start : start + last - first] = view[first:last]
        array[start + last - first : start + int(room[place])] = 0


def _column(field: pa.Field) -> Column:
    text: dict[str, Any] = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(
        text["dtype"],
        tuple(json.loads(text["shape"])),
        text["unit"],
        tuple(json.loads(text["names"])),
        json.loads(text["ragged"]),
    )
