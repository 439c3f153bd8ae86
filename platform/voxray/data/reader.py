"""Reading one shard: a memory-mapped Arrow file whose windows are checked before they are first used."""

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column
from voxray.data.checked import CheckedWindows
from voxray.data.manifest import ShardInfo
from voxray.data.row_copies import Destination, Slots, copy_rows, is_copied_singly, word_of
from voxray.data.shards import inner_shape

if TYPE_CHECKING:
    import torch


class ShardError(InputError):
    """A shard that is missing or damaged, whole or in one window; the message names it."""


@dataclass
class RowsOfWindows:
    """Rows to gather: row i is `local[i]` of `windows[which[i]]`, and goes to place `places[i]`.

    Where `which` is -1 the row cannot be used.
    """

    windows: Sequence["OpenWindow"]
    which: np.ndarray
    local: np.ndarray
    places: np.ndarray

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

    @cached_property
    def triples(self) -> list[tuple[int, int, int]]:
        """(place, window, row in it) of each row."""
        return list(zip(self.places.tolist(), self.which.tolist(), self.local.tolist(), strict=True))

    @cached_property
    def by_window(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(local, places) of each window's rows, where all rows can be used."""
        order = np.argsort(self.which, kind="stable")
        ends = np.cumsum(np.bincount(self.which, minlength=len(self.windows))).tolist()
        bounds = list(pairwise([0, *ends]))
        return [(self.local[order[a:b]], self.places[order[a:b]]) for a, b in bounds]

    def lengths(self, name: str) -> np.ndarray:
        """Return each row's entries of a ragged column, int64 [rows]; 0 for one that cannot be used."""
        offsets = [window.offsets(name) for window in self.windows]
        pairs = zip(self.which.tolist(), self.local.tolist(), strict=True)
        return np.array(
            [offsets[w][row + 1] - offsets[w][row] if w >= 0 else 0 for w, row in pairs], dtype=np.int64
        )


class ShardReader:
    """Rows of one memory-mapped shard. Tensor columns are read through views of the map, without a copy.

    With `info`, each window's hash is checked before its first use; processes of a node share what was.
    """

    def __init__(self, path: Path, info: ShardInfo | None = None, keeps_texts: bool = False) -> None:
        """Map the file and check its footer; no row is read. With `keeps_texts` a window's texts become
        Python's strings once, and stay. Raises ShardError when it cannot be used.
        """
        self.path, self._info, self._keeps_texts = path, info, keeps_texts
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
        out: dict[str, np.ndarray] = {}
        to: dict[str, Destination] = {}
        for name, column in chosen.items():
            if column.ragged:
                out[name], to[name] = _pieces(column, wanted.lengths(name))
            else:
                out[name] = empty_column(column, len(rows))
                to[name] = list(out[name]) if is_copied_singly(column) else Slots(out[name], wanted.places)
        copy_rows(wanted, to, chosen)
        return out

    def window(self, index: int) -> "OpenWindow":
        """Return a window, checked at its first use. Raises ShardError when it is damaged."""
        window = self._windows[index]
        if window is None:
            self._check(index)
            batch = self._file.get_batch(index)
            window = self._windows[index] = OpenWindow(batch, self.columns, self._keeps_texts)
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
    """One record batch: numpy views of its tensors, its texts, the offsets of its ragged columns."""

    def __init__(
        self, batch: pa.RecordBatch, columns: Mapping[str, Column], keeps_texts: bool = False
    ) -> None:
        """Make the views; nothing is copied."""
        self.batch = batch
        self._texts: dict[str, np.ndarray] | None = {} if keeps_texts else None
        self.views: dict[str, np.ndarray] = {}
        self._offsets: dict[str, list[int]] = {}
        self._words: dict[str, torch.Tensor] = {}
        self._columns = columns
        for name, column in columns.items():
            if not column.is_tensor:
                continue
            array = batch.column(name)
            array = array.values if column.ragged else array
            inner = inner_shape(column)
            flat = array.values if inner else array
            self.views[name] = flat.to_numpy(zero_copy_only=True).reshape(-1, *inner)

    def words(self, name: str) -> "torch.Tensor":
        """Return a tensor column's rows as integers [rows, words], a view that nobody may write to."""
        if name not in self._words:
            import torch

            view = self.views[name]
            # By its address, since torch warns of an array that is not writable.
            memory = (ctypes.c_ubyte * view.nbytes).from_address(view.__array_interface__["data"][0])
            words = torch.frombuffer(memory, dtype=getattr(torch, word_of(view.nbytes // len(view))))
            self._words[name] = words.view(len(view), -1)
        return self._words[name]

    def offsets(self, name: str) -> list[int]:
        """Return where each row of a ragged, text or encoded column begins, and the last one's end."""
        if name not in self._offsets:
            array, column = self.batch.column(name), self._columns[name]
            if column.is_tensor:
                ends = array.offsets.to_numpy(zero_copy_only=True)
            else:
                kind = np.int32 if column.dtype == TEXT else np.int64
                ends = np.frombuffer(array.buffers()[1], kind, len(array) + 1)
            self._offsets[name] = ends.tolist()
        return self._offsets[name]

    def texts(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the strings of some rows of a text column, an object array."""
        if self._texts is None:
            return self.batch.column(name).take(pa.array(rows)).to_numpy(zero_copy_only=False)
        if name not in self._texts:
            self._texts[name] = self.batch.column(name).to_numpy(zero_copy_only=False)
        return self._texts[name][rows]

    @property
    def keeps_texts(self) -> bool:
        """Whether texts become strings once: asking for them in one call is then always the cheapest."""
        return self._texts is not None

    def data(self, name: str) -> memoryview:
        """Return the bytes of a text or encoded column, all rows after one another."""
        return memoryview(self.batch.column(name).buffers()[2] or b"")


def _pieces(column: Column, lengths: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return an object array of one array per ragged row, and the same as a list."""
    memory = empty_column(column, int(lengths.sum()))
    ends = np.cumsum(lengths).tolist()
    pieces = [memory[end - size : end] for end, size in zip(ends, lengths.tolist(), strict=True)]
    values = np.empty(len(pieces), dtype=object)
    for row, piece in enumerate(pieces):
        values[row] = piece
    return values, pieces


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
