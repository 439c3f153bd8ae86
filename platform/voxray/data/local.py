"""Windows of a dataset's shards, and batches read from them in this process. No Ray.

A window is the unit of reading: a worker's rows of some consecutive batches, gathered where the shards are.
"""

import hashlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from voxray.config.errors import InputError
from voxray.core.batch import Columns, EpochRequest
from voxray.data.config import DataConfig
from voxray.data.manifest import Manifest, ShardInfo, load_manifest
from voxray.data.order import EpochOrder, IntArray, batch_places, num_batches
from voxray.data.shards import ShardReader, open_shard

VALID, POSITION = "valid", "position"
T = TypeVar("T")
BATCHES_AHEAD = 4  # gathered by the background thread while the caller uses one


@dataclass(frozen=True)
class EpochPlan:
    """One worker's share of one epoch, as descriptors: all that a read task needs to gather a window."""

    dataset: Path
    shards: tuple[ShardInfo, ...]
    request: EpochRequest
    rank: int
    world_size: int
    group_rows: int
    batches_per_window: int

    @cached_property
    def order(self) -> EpochOrder:
        """The epoch's order over all workers."""
        request = self.request
        shard_rows = tuple(shard.rows for shard in self.shards)
        return EpochOrder(
            shard_rows, request.seed, request.stage, request.epoch, request.shuffle, self.group_rows
        )

    def windows(self) -> list[range]:
        """Return the windows that are left of the epoch, each a range of global batches."""
        end = num_batches(self.order.num_rows, self.request.batch_size)
        starts = range(self.request.start_batch, end, self.batches_per_window)
        return [range(start, min(start + self.batches_per_window, end)) for start in starts]

    def sizes(self, window: range) -> list[int]:
        """Return this worker's rows in each batch of a window, padding included."""
        return [len(places) for places in map(self._places, window)]

    def gather(self, window: range, into: "Buffers | None" = None) -> dict[str, np.ndarray]:
        """Read a window's rows from the verified shards; adds the columns `valid` and `position`.

        The rows are written into the arrays that `into` keeps, where it is given, else into new ones.
        """
        places = np.concatenate([self._places(batch) for batch in window])
        valid = places >= 0
        position = np.where(valid, places, -places - 1)
        first, last = int(position.min()), int(position.max())
        rows = self.order.rows(first, last + 1)[position - first]
        return {**self._read(rows, into or Buffers()), VALID: valid, POSITION: position}

    def read_all(self) -> dict[str, np.ndarray]:
        """Read every row of the split, in the order of the epoch."""
        return self._read(self.order.rows(0, self.order.num_rows), Buffers())

    def _places(self, batch: int) -> IntArray:
        """Return the places of this worker's rows; without rows, the batch's first as padding: negative."""
        request = self.request
        start, stop = batch_places(batch, request.batch_size, self.order.num_rows, self.rank, self.world_size)
        if stop > start:
            return np.arange(start, stop, dtype=np.int64)
        return np.array([-batch * request.batch_size - 1], dtype=np.int64)

    @cached_property
    def _shard_ends(self) -> IntArray:
        return np.cumsum([shard.rows for shard in self.shards])

    def _read(self, rows: IntArray, into: "Buffers") -> dict[str, np.ndarray]:
        shard_of_row = np.searchsorted(self._shard_ends, rows, side="right")
        columns: dict[str, np.ndarray] = {}
        for index in np.unique(shard_of_row).tolist():
            places = np.flatnonzero(shard_of_row == index)
            shard = self.shards[index]
            reader = verified_shard(self.dataset / shard.file, shard.sha256)
            columns = columns or into.arrays(reader, len(rows))
            reader.take_into(columns, places, rows[places] - (self._shard_ends[index] - shard.rows))
        return columns


class Buffers:
    """Arrays that are written again and again: memory that is touched first costs twice a copy."""

    def __init__(self) -> None:
        """Begin without memory."""
        self._kept: dict[str, np.ndarray] = {}

    def arrays(self, like: ShardReader, num_rows: int) -> dict[str, np.ndarray]:
        """Return arrays of `num_rows` rows for all columns of `like`, the kept ones where they suffice."""
        if not self._kept or len(next(iter(self._kept.values()))) < num_rows:
            self._kept = like.empty(num_rows)
        return {name: array[:num_rows] for name, array in self._kept.items()}


class LocalStream:
    """A worker's batches, gathered from memory-mapped shards by a background thread of this process."""

    def __init__(
        self, dataset: Path, config: DataConfig | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        """Open the dataset's manifest. Raises InputError when the folder holds no dataset."""
        self.dataset = dataset
        self.manifest: Manifest = load_manifest(dataset)
        self._config = config or DataConfig()
        self._rank, self._world_size = rank, world_size

    def num_rows(self, split: str) -> int:
        """Rows of the split over all workers; 0 where the dataset has no such split."""
        return self.manifest.num_rows(split) if split in self.manifest.splits else 0

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch, from `request.start_batch` on."""
        plan = self.plan(request)
        batches = range(request.start_batch, num_batches(plan.order.num_rows, request.batch_size))
        # One buffer is with the caller, one is being written, the others wait: none is overwritten in use.
        ring = [Buffers() for _ in range(BATCHES_AHEAD + 2)]
        yield from ahead(
            (plan.gather(range(batch, batch + 1), ring[batch % len(ring)]) for batch in batches),
            BATCHES_AHEAD,
        )

    def read_split(self, split: str) -> dict[str, np.ndarray]:
        """Return all rows of a split, in the order of the shards. For splits that fit in memory."""
        return self.plan(EpochRequest(split, 1, seed=0, shuffle=False)).read_all()

    def plan(self, request: EpochRequest) -> EpochPlan:
        """Return this worker's plan of an epoch, sized by `data.window_mb` and `data.shuffle_mb`."""
        shards = self.manifest.shards_of(request.split)
        row_mb = sum(shard.bytes for shard in shards) / sum(shard.rows for shard in shards) / 1e6
        rows_per_batch = -(-request.batch_size // self._world_size)
        return EpochPlan(
            self.dataset,
            shards,
            request,
            self._rank,
            self._world_size,
            group_rows=max(1, int(self._config.shuffle_mb / row_mb)),
            batches_per_window=max(1, int(self._config.window_mb / row_mb) // rows_per_batch),
        )


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield `items`, made by a thread that stays up to `depth` items ahead; its exception is raised here.

    When the caller stops early, the thread ends after the item that it is making.
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                made.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


@cache
def verified_shard(path: Path, sha256: str) -> ShardReader:
    """Open a shard, whose sha256 is checked once per process. Raises InputError when it differs."""
    reader = open_shard(path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise InputError(
                f"shard {path} is damaged: its sha256 is not the manifest's; prepare the dataset again"
            )
    return reader


def split_batches(columns: dict[str, np.ndarray], sizes: list[int]) -> Iterator[Columns]:
    """Yield a window's batches, as views."""
    start = 0
    for size in sizes:
        yield {name: values[start : start + size] for name, values in columns.items()}
        start += size
