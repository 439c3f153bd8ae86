"""The order of an epoch: a pure function of (seed, stage, epoch), the shards' sizes and the batch size.

Two levels: shards are permuted and cut into groups, then rows are permuted inside each group. A place in the
order is one integer, so any batch is found without the ones before it, and memory grows with the shards and
one group, not with rows.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class EpochOrder:
    """Rows of a split in the order of one epoch, each exactly once.

    `shard_rows` are the split's shards in their fixed order; a row is its index in their concatenation.
    About `group_rows` rows (whole shards) are shuffled together; without `shuffle` the order is the shards'.
    """

    shard_rows: tuple[int, ...]
    seed: int
    stage: int
    epoch: int
    shuffle: bool
    group_rows: int

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return int(self._shard_starts[-1])

    def rows(self, start: int, stop: int) -> IntArray:
        """Return the rows at the places `start` … `stop - 1`. Costs the groups they touch, not the epoch."""
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        first = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        pieces: list[IntArray] = []
        for group in range(first, len(self._group_starts) - 1):
            begin, end = int(self._group_starts[group]), int(self._group_starts[group + 1])
            if begin >= stop:
                break
            pieces.append(self._group(group)[max(start, begin) - begin : min(stop, end) - begin])
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    @cached_property
    def _shard_sizes(self) -> IntArray:
        return np.asarray(self.shard_rows, dtype=np.int64)

    @cached_property
    def _shard_starts(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(self._shard_sizes)])

    @cached_property
    def _shard_order(self) -> IntArray:
        return self._generator("shards").permutation(len(self.shard_rows)).astype(np.int64)

    @cached_property
    def _group_of_shard(self) -> IntArray:
        """The group of each shard, in shuffled order; a shard opens one where the one before it is full."""
        sizes = self._shard_sizes[self._shard_order]
        starts = np.cumsum(sizes) - sizes
        return np.unique(starts // self.group_rows, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def _group_starts(self) -> IntArray:
        """First place of each group, and the number of rows at the end."""
        sizes = np.bincount(self._group_of_shard, weights=self._shard_sizes[self._shard_order])
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def _last_group(self) -> dict[int, IntArray]:
        return {}

    def _group(self, group: int) -> IntArray:
        """Return a group's rows, permuted; the last one is kept, as its batches follow one another."""
        if group not in self._last_group:
            first, last = np.searchsorted(self._group_of_shard, [group, group + 1])
            starts, sizes = self._shard_starts, self._shard_sizes
            rows: IntArray = np.concatenate(
                [
                    starts[shard] + np.arange(int(sizes[shard]))
                    for shard in self._shard_order[first:last].tolist()
                ]
            )
            self._last_group.clear()
            self._last_group[group] = self._generator(f"rows/{group}").permutation(rows).astype(np.int64)
        return self._last_group[group]

    def _generator(self, what: str) -> np.random.Generator:
        text = f"order/{self.seed}/{self.stage}/{self.epoch}/{what}".encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def num_batches(num_rows: int, batch_size: int) -> int:
    """Return the number of global batches of an epoch; the last one may be short and is kept."""
    return -(-num_rows // batch_size)


def batch_places(
    batch: int, batch_size: int, num_rows: int, rank: int = 0, world_size: int = 1
) -> tuple[int, int]:
    """Return the places (start, stop) of a worker's contiguous slice of a global batch.

    Slices differ by one row at most, join to the batch in rank order, and may be empty.
    """
    start = batch * batch_size
    length = min(batch_size, num_rows - start)
    return start + length * rank // world_size, start + length * (rank + 1) // world_size
