"""One worker's share of one epoch as descriptors, and how a window of it is gathered from the shards. No Ray.

A window is the unit of reading: a worker's rows of some consecutive batches, gathered where the shards are.
"""

import resource
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from voxray.core.batch import Columns
from voxray.core.schema import BYTES, TEXT, Column
from voxray.core.task import ReadStage
from voxray.data.buffers import Buffers
from voxray.data.decoded import DecodedShards
from voxray.data.index import LENGTH, POSITION, VALID
from voxray.data.manifest import ShardInfo
from voxray.data.order import EpochOrder, IntArray, worker_slots
from voxray.data.reader import OpenWindow, RowsOfWindows, ShardError, ShardReader
from voxray.data.row_copies import Destination, Slots, Stack, copy_rows
from voxray.data.shard_cache import ShardCache
from voxray.data.store import Store

_MAX_OPEN_SHARDS = 4096
KEPT_TEXT_ROWS = 1 << 18  # up to so many rows of a dataset, texts are kept as strings: some 20 MB a column
SHARED_BYTES = 1 << 20  # of a batch; copying less is not worth waking another thread
# Threads of one process share an order's spans, which are worked out when first asked for.
_ORDER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Window:
    """A gathered window: its batches, and the faults that were set aside while it was read."""

    batches: Sequence[Columns]
    faults: tuple[str, ...] = ()


class OpenShards:
    """The windows of a dataset's shards, numbered through; opened when first asked for, and kept.

    Only so many shards stay open: the one that was opened first is closed. Remote ones come from the node's
    cache. Each process has its own.
    """

    def __init__(
        self,
        store: Store,
        infos: Sequence[ShardInfo],
        cache: ShardCache | None,
        decoded: DecodedShards | None = None,
    ) -> None:
        """Number the windows; none is opened. With `decoded`, its copies are read instead."""
        self._store, self._infos, self._cache, self._decoded = store, infos, cache, decoded
        windows = [len(info.windows) - 1 for info in infos]  # without the footer
        self._first_window = np.cumsum([0, *windows])
        firsts = np.cumsum([info.rows for info in infos]) - [info.rows for info in infos]
        self._starts = np.fromiter(
            (
                first + start
                for first, info in zip(firsts.tolist(), infos, strict=True)
                for start in (0, *(window.end_row for window in info.windows[:-2]))
            ),
            np.int64,
        )
        self._keeps_texts = sum(info.rows for info in infos) <= KEPT_TEXT_ROWS
        self._readers: dict[int, ShardReader] = {}
        self._windows: dict[int, OpenWindow] = {}
        self._max_open = min(_MAX_OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._lock = threading.Lock()

    def places(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Return the window of each row, by its number, and its place in it."""
        window = np.searchsorted(self._starts, rows, side="right") - 1
        return window, rows - self._starts[window]

    def window(self, number: int) -> OpenWindow:
        """Return a window. Raises ShardError when it, or its shard, is missing or damaged."""
        found = self._windows.get(number)
        if found is None:
            with self._lock:
                shard = int(np.searchsorted(self._first_window, number, side="right")) - 1
                found = self._opened(shard, number - int(self._first_window[shard]))
                self._windows[number] = found
        return found

    def _opened(self, shard: int, window: int) -> OpenWindow:
        try:
            return self._reader(shard).window(window)
        except ShardError:
            if self._decoded is None:
                raise
            self._decoded.forget(self._infos[shard])  # a damaged copy is made again, once
            if shard in self._readers:
                self._close(shard)
            return self._reader(shard).window(window)

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Begin to fetch remote shards into the cache, without waiting."""
        if self._cache is not None:
            self._cache.fetch_ahead(self._store, [self._infos[shard] for shard in shards])

    def _reader(self, shard: int) -> ShardReader:
        if shard not in self._readers:
            info = self._infos[shard]
            if self._decoded is None:
                in_cache = None if self._cache is None else self._cache.fetch(self._store, info)
                place = in_cache or self._store.path(info.file), info
            else:
                place = self._decoded.fetch(info)
            self._readers[shard] = ShardReader(*place, keeps_texts=self._keeps_texts)
            if len(self._readers) > self._max_open:
                self._close(next(iter(self._readers)))
        return self._readers[shard]

    def _close(self, shard: int) -> None:
        del self._readers[shard]
        for number in range(int(self._first_window[shard]), int(self._first_window[shard + 1])):
            self._windows.pop(number, None)


@dataclass(frozen=True)
class EpochPlan:
    """All that a process needs to gather any window of a worker's epoch; small, and sent to read tasks."""

    store: Store
    columns: Mapping[str, Column]
    infos: tuple[ShardInfo, ...]
    order: EpochOrder
    rank: int
    world_size: int
    batches_per_window: int
    on_error: str  # fail | quarantine
    cache: ShardCache | None = None
    stages: tuple[ReadStage, ...] = ()
    copy_threads: int = 1
    decoded: DecodedShards | None = None
    _here: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return {**self.__dict__, "_here": {}}

    def windows(self) -> list[range]:
        """Return the windows that are left of the epoch, each a range of global batches."""
        end, first = self.order.num_batches, self.order.request.start_batch
        starts = range(first, end, self.batches_per_window)
        return [range(start, min(start + self.batches_per_window, end)) for start in starts]

    def gather(self, window: range, into: Buffers | None = None) -> Window:
        """Read a window's rows from the checked shards, as one batch of columns per global batch.

        Columns `valid` and `position` are added; ragged columns are padded to their longest row in the batch,
        with their lengths as `<name>.length`. The arrays lie in `into`'s memory, where it is given.

        Raises ShardError for a damaged or missing shard, unless faults are quarantined: its rows are zero and
        not valid then.
        """
        slots = self._slots(window)
        batches, broken, faults = self._read([rows for rows, _, _ in slots], into or Buffers())
        for batch, lost, (_, valid, position) in zip(batches, broken, slots, strict=True):
            batch[VALID], batch[POSITION] = valid & ~lost, position
        for stage in self.stages:
            batches = [dict(stage.function(batch)) for batch in batches]
        return Window(batches, faults)

    def read_all(self) -> dict[str, np.ndarray]:
        """Read every row of the epoch, in its order; ragged columns padded to the longest of all."""
        batches, _, _ = self._read([self.order.rows(0, self.order.num_rows)], Buffers())
        return batches[0]

    @property
    def shards(self) -> OpenShards:
        """The open shards of this process."""
        if "shards" not in self._here:
            self._here["shards"] = OpenShards(self.store, self.infos, self.cache, self.decoded)
        return self._here["shards"]

    def fetch_span(self, span: int) -> None:
        """Begin to fetch a span's remote shards."""
        if self.cache is not None and self.decoded is None:
            self.shards.fetch_ahead(self.order.span_shards(span).tolist())

    def _slots(self, window: range) -> list[tuple[IntArray, np.ndarray, IntArray]]:
        """Return (rows, valid, position) of this worker's part of each batch; padding is its first row."""
        with _ORDER_LOCK:
            bounds = [self.order.bounds(batch) for batch in window]
            begin, end = bounds[0][0], bounds[-1][1]
            rows = self.order.rows(begin, end)
        found: list[tuple[IntArray, np.ndarray, IntArray]] = []
        for start, stop in bounds:
            places, valid = self._places(start, stop)
            found.append((rows[places - begin], valid, places))
        return found

    def _places(self, start: int, stop: int) -> tuple[IntArray, np.ndarray]:
        """Return (position, valid) of this worker's part of the batch at the places `start` … `stop - 1`."""
        request = self.order.request
        num_slots = request.batch_size if request.rules.last_batch == "pad" else stop - start
        first, last = worker_slots(num_slots, self.rank, self.world_size)
        # A worker without any slot still gets a row, so that all workers take part in the step.
        slots = np.arange(first, last) if last > first else np.array([stop - start])
        valid = slots < stop - start
        return start + np.where(valid, slots, 0), valid

    # --- reading
    def _read(
        self, rows: Sequence[IntArray], into: Buffers
    ) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], tuple[str, ...]]:
        """Return the values of each batch's rows, which of them cannot be used, and why."""
        wanted, faults = self._open(np.concatenate(rows))
        nums = [len(own) for own in rows]
        ends = np.cumsum(nums)[:-1]
        columns: dict[str, list[np.ndarray]] = {}
        to: dict[str, Destination] = {}
        for name, column in self.columns.items():
            lengths: list[np.ndarray] = []
            if column.ragged:
                columns[name + LENGTH] = lengths = np.split(wanted.lengths(name), ends)
            room = into.room(name, column, nums, lengths)
            columns[name], to[name] = room.batches, room.to
        self._copy(wanted.sound(), to)
        broken = np.split(wanted.which < 0, ends)
        if faults:
            self._blank(columns, broken)
        batches = [{name: own[index] for name, own in columns.items()} for index in range(len(rows))]
        return batches, broken, faults

    def _blank(self, columns: Mapping[str, list[np.ndarray]], broken: Sequence[np.ndarray]) -> None:
        """Make rows that cannot be used zero or empty."""
        for name, column in self.columns.items():
            for array, lost in zip(columns[name], broken, strict=True):
                array[lost] = {TEXT: "", BYTES: b""}.get(column.dtype, 0)

    def _copy(self, rows: RowsOfWindows, out: Mapping[str, Destination]) -> None:
        """Copy rows into `out`, with several threads where there is much: one does not fill the memory's
        bandwidth.
        """
        num_bytes = sum(_bytes_of(to) for to in out.values())
        if self.copy_threads == 1 or num_bytes < SHARED_BYTES:
            copy_rows(rows, out, self.columns)
            return
        first, *others = rows.shares(self.copy_threads)
        begun = [_helpers().submit(copy_rows, share, out, self.columns) for share in others]
        copy_rows(first, out, self.columns)
        for share in begun:
            share.result()

    def _open(self, rows: IntArray) -> tuple[RowsOfWindows, tuple[str, ...]]:
        """Return the rows' windows, -1 for a row whose window cannot be used, and why it cannot."""
        number_of_row, local = self.shards.places(rows)
        numbers = sorted(set(number_of_row.tolist()))
        windows: list[OpenWindow] = []
        index_of_number = np.full(len(numbers), -1)
        faults: dict[str, None] = {}
        for index, number in enumerate(numbers):
            try:
                found = self.shards.window(number)
            except ShardError as error:
                if self.on_error == "fail":
                    raise
                faults[str(error)] = None
                continue
            index_of_number[index] = len(windows)
            windows.append(found)
        which = index_of_number[np.searchsorted(numbers, number_of_row)]
        return RowsOfWindows(windows, which, local, np.arange(len(rows))), tuple(faults)


def _bytes_of(to: Destination) -> int:
    if isinstance(to, Slots):
        return to.array.nbytes
    return sum(array.nbytes for array in (to.arrays if isinstance(to, Stack) else to))


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    """Return the threads that help to copy."""
    return ThreadPoolExecutor(thread_name_prefix="voxray-copy")
