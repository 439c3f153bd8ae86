"""Windows of a dataset's shards, and batches read from them in this process. No Ray.

A window is the unit of reading: some batches' rows of one worker, gathered where the shards are.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.batch import Columns, EpochRequest
from voxray.data.manifest import ShardInfo, load_manifest
from voxray.data.order import IntArray, epoch_order, num_batches, worker_slice
from voxray.data.shards import ShardReader, open_shard

VALID, POSITION = "valid", "position"


@dataclass(frozen=True)
class Window:
    """One worker's rows of consecutive batches: indices into the split, their places in the order, and batch
    sizes.
    """

    rows: IntArray
    position: IntArray
    valid: np.ndarray
    sizes: tuple[int, ...]


class LocalStream:
    """A worker's batches, read in this process from memory-mapped shards."""

    def __init__(self, dataset: Path, rank: int = 0, world_size: int = 1, window_mb: float = 32.0) -> None:
        """Open the dataset's manifest. Raises InputError when the folder holds no dataset."""
        self.dataset = dataset
        self.manifest = load_manifest(dataset)
        self._rank, self._world_size = rank, world_size
        total_rows = max(1, sum(shard.rows for shard in self.manifest.shards))
        row_bytes = sum(shard.bytes for shard in self.manifest.shards) / total_rows
        self._window_rows = max(1, int(window_mb * 1e6 / max(row_bytes, 1)))

    def num_rows(self, split: str) -> int:
        """Rows of the split over all workers; 0 where the dataset has no such split."""
        return self.manifest.num_rows(split) if split in self.manifest.splits else 0

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch, from `request.start_batch` on."""
        shards = self.manifest.shards_of(request.split)
        for window in self.windows(request):
            yield from split_batches(gather(self.dataset, shards, window), window.sizes)

    def read_split(self, split: str) -> dict[str, np.ndarray]:
        """Return all rows of a split, in the order of the shards. For splits that fit in memory."""
        order = np.arange(self.num_rows(split))
        everything = Window(order, order, np.ones(len(order), bool), (len(order),))
        return gather(self.dataset, self.manifest.shards_of(split), everything)

    def windows(self, request: EpochRequest) -> Iterator[Window]:
        """Yield the windows of this worker for what is left of an epoch."""
        num_rows = self.num_rows(request.split)
        order = epoch_order(num_rows, request.seed, request.stage, request.epoch, request.shuffle)
        mine: list[IntArray] = []
        for batch in range(request.start_batch, num_batches(num_rows, request.batch_size)):
            start = batch * request.batch_size
            length = min(request.batch_size, num_rows - start)
            part = worker_slice(length, self._rank, self._world_size)
            # A worker without rows gets the batch's first one as padding, marked by a negative place.
            places = (
                np.arange(start + part.start, start + part.stop)
                if part.stop > part.start
                else np.array([-start - 1])
            )
            mine.append(places)
            if sum(map(len, mine)) >= self._window_rows:
                yield _window(order, mine)
                mine = []
        if mine:
            yield _window(order, mine)


def gather(dataset: Path, shards: tuple[ShardInfo, ...], window: Window) -> dict[str, np.ndarray]:
    """Read a window's rows from the verified shards; adds the columns `valid` and `position`."""
    ends = np.cumsum([shard.rows for shard in shards])
    shard_of_row = np.searchsorted(ends, window.rows, side="right")
    columns: dict[str, np.ndarray] = {}
    for index in np.unique(shard_of_row):
        places = np.flatnonzero(shard_of_row == index)
        shard = shards[index]
        reader = verified_shard(dataset / shard.file, shard.sha256)
        for name, values in reader.take(window.rows[places] - (ends[index] - shard.rows)).items():
            if name not in columns:
                columns[name] = np.empty((len(window.rows), *values.shape[1:]), values.dtype)
            columns[name][places] = values
    return {**columns, VALID: window.valid, POSITION: window.position}


@cache
def verified_shard(path: Path, sha256: str) -> ShardReader:
    """Open a shard; its sha256 is checked when a process first opens it. Raises InputError when it is
    damaged.
    """
    reader = open_shard(path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise InputError(
                f"shard {path} is damaged: its sha256 is not the manifest's; prepare the dataset again"
            )
    return reader


def _window(order: IntArray, parts: list[IntArray]) -> Window:
    places = np.concatenate(parts)
    valid = places >= 0
    position = np.where(valid, places, -places - 1)
    return Window(order[position], position, valid, tuple(map(len, parts)))


def split_batches(columns: dict[str, np.ndarray], sizes: tuple[int, ...]) -> Iterator[Columns]:
    """Yield a window's batches, as views."""
    start = 0
    for size in sizes:
        yield {name: values[start : start + size] for name, values in columns.items()}
        start += size
