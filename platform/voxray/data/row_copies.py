"""Copying rows of mapped windows to where a batch wants them, each kind of column in its fastest way."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from voxray.core.schema import TEXT, Column
from voxray.data.shards import inner_shape

if TYPE_CHECKING:
    from voxray.data.reader import RowsOfWindows

COPIED_SINGLY_BYTES = 4096
MOST_WORDS = 32_767  # torch copies a longer row with threads of its own, which are not wanted here
WORDS = ("int64", "int32", "int16", "uint8")
# With fewer rows per window than this, a call per window costs more than a step per row.
ROWS_WORTH_A_CALL = 8
TEXTS_WORTH_A_CALL = 40


@dataclass(frozen=True)
class Slots:
    """An array that rows of one column are gathered into: row i goes to `array[places[i]]`."""

    array: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Stack:
    """Arrays of rows [n, *shape], counted over all of them, that many rows are copied into by one call.

    A copy of a row by numpy gives the interpreter's lock away and waits to get it back: with two threads
    and rows of some KB that took a third of the time.
    """

    arrays: list[np.ndarray]

    def runs(self, places: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
        """Return (first, last, out) for rows first … last - 1, which go to the array `out` in order."""
        starts = np.cumsum([0, *(len(array) for array in self.arrays)])
        which = np.searchsorted(starts, places, side="right") - 1
        (breaks,) = np.nonzero((np.diff(places) != 1) | (np.diff(which) != 0))
        found: list[tuple[int, int, np.ndarray]] = []
        for first, last in pairwise([0, *(breaks + 1).tolist(), len(places)]):
            if last > first:
                begin = int(places[first] - starts[which[first]])
                found.append((first, last, self.arrays[which[first]][begin : begin + last - first]))
        return found


# Where the rows of a column go: places of one array, a stack, or row i into an array of its own, `[i]`, that
# a ragged row may not fill.
Destination = Slots | Stack | list[np.ndarray]


def copy_rows(rows: "RowsOfWindows", out: Mapping[str, Destination], columns: Mapping[str, Column]) -> None:
    """Write rows, all of which can be used, to their places, for the given columns; what a ragged row leaves
    of its own array becomes zero.
    """
    rows_per_window = len(rows.which) / max(1, len(rows.windows))
    for name, column in columns.items():
        to = out[name]
        if isinstance(to, list):
            (_copy_ragged if column.ragged else _copy_singly)(rows, name, to)
        elif isinstance(to, Stack):
            _copy_together(rows, name, to)
        elif column.is_tensor:
            _copy_tensor(rows, name, to, rows_per_window < ROWS_WORTH_A_CALL)
        elif column.dtype == TEXT and (rows_per_window >= TEXTS_WORTH_A_CALL or _keep_texts(rows)):
            _copy_texts(rows, name, to)
        else:
            _copy_values(rows, name, to, column.dtype == TEXT)


def _copy_ragged(rows: "RowsOfWindows", name: str, to: list[np.ndarray]) -> None:
    views = [window.views[name] for window in rows.windows]
    offsets = [window.offsets(name) for window in rows.windows]
    for place, window, row in rows.triples:
        first, last = offsets[window][row], offsets[window][row + 1]
        own = to[place]
        own[: last - first] = views[window][first:last]
        own[last - first :] = 0


def _copy_singly(rows: "RowsOfWindows", name: str, to: list[np.ndarray]) -> None:
    views = [window.views[name] for window in rows.windows]
    for place, window, row in rows.triples:
        to[place][...] = views[window][row]


def _copy_together(rows: "RowsOfWindows", name: str, to: Stack) -> None:
    import torch

    select = [window.words(name).select for window in rows.windows]
    sources = [select[window](0, row) for _, window, row in rows.triples]
    for first, last, out in to.runs(rows.places):
        words = out.reshape(len(out), -1).view(word_of(out[0].nbytes))
        torch.stack(sources[first:last], out=torch.from_numpy(words))


def _copy_tensor(rows: "RowsOfWindows", name: str, to: Slots, is_sparse: bool) -> None:
    views = [window.views[name] for window in rows.windows]
    if is_sparse:
        slots = to.places.tolist()
        for place, window, row in rows.triples:
            to.array[slots[place]] = views[window][row]
        return
    for view, (local, places) in zip(views, rows.by_window, strict=True):
        to.array[to.places[places]] = view.take(local, axis=0)


def _copy_texts(rows: "RowsOfWindows", name: str, to: Slots) -> None:
    """Write many texts of a window: Arrow makes the strings in one call."""
    for window, (local, places) in zip(rows.windows, rows.by_window, strict=True):
        to.array[to.places[places]] = window.texts(name, local)


def _keep_texts(rows: "RowsOfWindows") -> bool:
    return all(window.keeps_texts for window in rows.windows)


def _copy_values(rows: "RowsOfWindows", name: str, to: Slots, is_text: bool) -> None:
    offsets = [window.offsets(name) for window in rows.windows]
    data = [window.data(name) for window in rows.windows]
    slots = to.places.tolist()
    for place, window, row in rows.triples:
        value = data[window][offsets[window][row] : offsets[window][row + 1]].tobytes()
        to.array[slots[place]] = value.decode() if is_text else value


def is_copied_singly(column: Column) -> bool:
    """Whether each row of a column goes into an array of its own: numpy's indexing would copy it twice."""
    return column.ragged or _row_bytes(column) >= COPIED_SINGLY_BYTES


def is_copied_together(column: Column) -> bool:
    """Whether a `Stack` is worth it: for larger rows the interpreter's lock does not matter."""
    row_bytes = _row_bytes(column)
    words = row_bytes // np.dtype(word_of(row_bytes)).itemsize
    return not column.ragged and row_bytes >= COPIED_SINGLY_BYTES and words <= MOST_WORDS


def word_of(row_bytes: int) -> str:
    """Return the largest integer type that rows of so many bytes consist of."""
    return next(word for word in WORDS if row_bytes % np.dtype(word).itemsize == 0)


def _row_bytes(column: Column) -> int:
    return prod(inner_shape(column)) * np.dtype(column.dtype).itemsize if column.is_tensor else 0
