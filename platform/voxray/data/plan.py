"""One worker's share of one epoch as descriptors, and how a window of it is gathered from the shards. No Ray.

A window is the unit of reading: a worker's rows of some consecutive batches, gathered where the shards are.
"""

import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.batch import Columns
from voxray.core.schema import Column
from voxray.core.task import ReadStage
from voxray.data.index import LENGTH
from voxray.data.manifest import ShardInfo
from voxray.data.order import EpochOrder, IntArray, worker_slots
from voxray.data.reader import Gathered, ShardError, ShardReader
from voxray.data.shard_cache import ShardCache
from voxray.data.shards import inner_shape
from voxray.data.store import Store

VALID, POSITION = "valid", "position"
_MAX_OPEN_SHARDS = 4096
# Threads of one process share an order's spans, which are worked out when first asked for.
_ORDER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Window:
    """A gathered window: its batches, and the faults that were set aside while it was read."""

    batches: Sequence[Columns]
    faults: tuple[str, ...] = ()


class Buffers:
    """Memory that is written again and again: pages that are touched first cost twice a copy."""

    def __init__(self, pinned: bool = False) -> None:
        """Begin without memory; `pinned` memory is page-locked, for copies to a GPU."""
        self._kept: dict[str, np.ndarray] = {}
        self._pinned = pinned

    def array(self, name: str, column: Column, num: int) -> np.ndarray:
        """Return [num, *shape] of a column (of entries, for a ragged one), in the kept memory if it does."""
        inner = inner_shape(column)
        if not column.is_tensor:
            return np.empty(num, dtype=object)
        size = num * int(np.prod(inner, dtype=np.int64))
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = self._new(size, column.dtype)
        return self._kept[name][:size].reshape(num, *inner)

    def _new(self, size: int, dtype: str) -> np.ndarray:
        if not self._pinned:
            return np.empty(size, dtype)
        import torch

        pinned = torch.empty(size * np.dtype(dtype).itemsize, dtype=torch.uint8, pin_memory=True)
        return pinned.numpy().view(dtype)


class Shards:
    """The open shards of a dataset, by place in a list; remote ones come from the node's cache.

    Only so many stay open: what was used longest ago is closed. Each process has its own.
    """

    def __init__(self, store: Store, infos: Sequence[ShardInfo], cache: ShardCache | None) -> None:
        """Name the shards; none is opened."""
        self._store, self._infos, self._cache = store, infos, cache
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._max_open = min(_MAX_OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._lock = threading.Lock()

    def reader(self, shard: int) -> ShardReader:
        """Return a shard's reader. Raises ShardError when it is missing or damaged."""
        with self._lock:
            found = self._open.pop(shard, None)
            if found is None:
                found = ShardReader(self._path(shard), self._infos[shard])
            self._open[shard] = found
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return found

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Begin to fetch remote shards into the cache, without waiting."""
        if self._cache is not None:
            self._cache.fetch_ahead(self._store, [self._infos[shard] for shard in shards])

    def _path(self, shard: int) -> Path:
        info = self._infos[shard]
        if self._cache is None:
            return self._store.path(info.file)
        return self._cache.fetch(self._store, info)


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
        with their lengths as `<name>.length`. The arrays are `into`'s, where it is given.

        Raises ShardError for a damaged or missing shard, unless faults are quarantined: its rows are zero and
        not valid then.
        """
        slots = [self._slots(batch) for batch in window]
        rows, valid, position = (np.concatenate(parts) for parts in zip(*slots, strict=True))
        sizes = [len(part[0]) for part in slots]
        gathered, broken, faults = self._read(rows, sizes, into or Buffers())
        valid = valid & ~broken
        batches = list(self._split(gathered, valid, position, sizes))
        for stage in self.stages:
            batches = [dict(stage.function(batch)) for batch in batches]
        return Window(batches, faults)

    def read_all(self) -> dict[str, np.ndarray]:
        """Read every row of the epoch, in its order; ragged columns padded to the longest of all."""
        rows = self.order.rows(0, self.order.num_rows)
        gathered, _, _ = self._read(rows, [len(rows)], Buffers())
        batch = next(self._split(gathered, np.ones(len(rows), bool), np.arange(len(rows)), [len(rows)]))
        return {name: values for name, values in batch.items() if name not in (VALID, POSITION)}

    @property
    def shards(self) -> Shards:
        """The open shards of this process."""
        if "shards" not in self._here:
            self._here["shards"] = Shards(self.store, self.infos, self.cache)
        return self._here["shards"]

    def fetch_span(self, span: int) -> None:
        """Begin to fetch a span's remote shards."""
        if self.cache is not None:
            self.shards.fetch_ahead(self.order.span_shards(span).tolist())

    def _slots(self, batch: int) -> tuple[IntArray, np.ndarray, IntArray]:
        """Return (rows, valid, position) of this worker's part of a batch; padding is the first row."""
        with _ORDER_LOCK:
            start, stop = self.order.bounds(batch)
            request = self.order.request
            num_slots = request.batch_size if request.rules.last_batch == "pad" else stop - start
            first, last = worker_slots(num_slots, self.rank, self.world_size)
            # A worker without any slot still gets a row, so that all workers take part in the step.
            slots = np.arange(first, last) if last > first else np.array([stop - start])
            valid = slots < stop - start
            places = start + np.where(valid, slots, 0)
            low, high = int(places.min()), int(places.max())
            rows = self.order.rows(low, high + 1)[places - low]
        return rows, valid, places

    # --- reading
    def _read(
        self, rows: IntArray, sizes: Sequence[int], into: Buffers
    ) -> tuple[Gathered, np.ndarray, tuple[str, ...]]:
        """Return the rows' values, which of them cannot be used, and why."""
        faults: dict[str, None] = {}
        broken = np.zeros(len(rows), dtype=bool)
        pieces = self._pieces(rows)
        for shard, places, local in pieces:
            for message, inside in self._faults(shard, local).items():
                faults[message] = None
                broken[places[inside]] = True
        sound = [(s, p[~broken[p]], local[~broken[p]]) for s, p, local in pieces]
        sound = [piece for piece in sound if len(piece[1])]
        lengths = self._lengths(sound, len(rows))
        ends = np.cumsum(sizes)
        room = {
            name: np.repeat([own.max(initial=0) for own in np.split(values, ends[:-1])], sizes)
            for name, values in lengths.items()
        }
        arrays = {
            name: into.array(name, column, int(room[name].sum()) if name in room else len(rows))
            for name, column in self.columns.items()
        }
        gathered = Gathered(arrays, lengths, room)
        for shard, places, local in sound:
            self.shards.reader(shard).take_into(gathered, places, local)
        if broken.any():
            _blank(gathered, self.columns, np.flatnonzero(broken))
        return gathered, broken, tuple(faults)

    def _pieces(self, rows: IntArray) -> list[tuple[int, IntArray, IntArray]]:
        """Return per shard: its place in the list, where its rows go, which of its rows they are."""
        ends = np.cumsum([info.rows for info in self.infos])
        shard_of_row = np.searchsorted(ends, rows, side="right")
        pieces = []
        for shard in np.unique(shard_of_row).tolist():
            places = np.flatnonzero(shard_of_row == shard)
            pieces.append((shard, places, rows[places] - (ends[shard] - self.infos[shard].rows)))
        return pieces

    def _faults(self, shard: int, local: IntArray) -> dict[str, np.ndarray]:
        """Return message → rows that cannot be used, where faults are set aside."""
        if self.on_error == "fail":
            return {}
        try:
            return self.shards.reader(shard).faults(local)
        except ShardError as fault:
            return {str(fault): np.arange(len(local))}

    def _lengths(
        self, pieces: Sequence[tuple[int, IntArray, IntArray]], num_rows: int
    ) -> dict[str, np.ndarray]:
        lengths = {
            name: np.zeros(num_rows, np.int64) for name, column in self.columns.items() if column.ragged
        }
        for shard, places, local in pieces if lengths else ():
            for name, values in lengths.items():
                values[places] = self.shards.reader(shard).lengths(name, local)
        return lengths

    def _split(
        self, gathered: Gathered, valid: np.ndarray, position: np.ndarray, sizes: Sequence[int]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield a window's batches, as views."""
        start = 0
        for size in sizes:
            stop = start + size
            batch: dict[str, np.ndarray] = {}
            for name, array in gathered.arrays.items():
                if name not in gathered.room:
                    batch[name] = array[start:stop]
                    continue
                room, first = int(gathered.room[name][start]), int(gathered.starts[name][start])
                batch[name] = array[first : first + size * room].reshape(size, room, *array.shape[1:])
                batch[name + LENGTH] = gathered.lengths[name][start:stop]
            batch[VALID], batch[POSITION] = valid[start:stop], position[start:stop]
            yield batch
            start = stop


def _blank(gathered: Gathered, columns: Mapping[str, Column], rows: IntArray) -> None:
    """Make the values of rows that cannot be used zero or empty."""
    for name, array in gathered.arrays.items():
        if name in gathered.room:
            for row in rows.tolist():
                start = int(gathered.starts[name][row])
                array[start : start + int(gathered.room[name][row])] = 0
        elif columns[name].is_tensor:
            array[rows] = 0
        else:
            array[rows] = "" if columns[name].dtype == "text" else b""
