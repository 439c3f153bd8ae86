"""The order of an epoch: a pure function of (seed, stage, epoch), the chosen rows and the batch rules.

Two levels: shards are permuted and cut into spans, then rows are permuted inside each span. Any batch is
found without the ones before it, and memory grows with the shards and one span, not with rows.

What is promised. `epoch`: every chosen row once, on any number of workers; with `last_batch: drop` all but
`num_left_out` of them. `with_replacement`: as many independent draws as there are chosen rows; a row may
come several times or not at all. Both can be resumed at any batch. Without grouping rule or length buckets
only the last batch may be short; with them the last ones of each span may be (`data/arrange.py`).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.data.arrange import Arranged, arrange, num_arranged
from voxray.data.selection import IntArray, Selection

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class EpochOrder:
    """The batches of one epoch. A row is its index in the concatenation of the split's shards.

    About `span_rows` rows (whole shards) are shuffled together; without `shuffle` the order is the shards'.
    """

    selection: Selection
    request: EpochRequest
    span_rows: int

    @property
    def num_batches(self) -> int:
        """Global batches of the epoch."""
        return int(self._batch_starts[-1])

    @property
    def num_rows(self) -> int:
        """Rows that the epoch delivers."""
        if self._is_arranged or not self._drops:
            return int(self._place_starts[-1])
        return self.num_batches * self.request.batch_size

    @property
    def num_left_out(self) -> int:
        """Chosen rows that `last_batch: drop` keeps out of this epoch."""
        return int(self._shard_counts.sum()) - self.num_rows

    def bounds(self, batch: int) -> tuple[int, int]:
        """Return the places (start, stop) of a global batch in the epoch."""
        size = self.request.batch_size
        if not self._is_arranged:
            return batch * size, min((batch + 1) * size, self.num_rows)
        span, inside = self._span_of_batch(batch)
        start = int(self._place_starts[span])
        ends = self._span(span).ends
        return start + int(ends[inside - 1] if inside else 0), start + int(ends[inside])

    def batch_rows(self, batch: int) -> IntArray:
        """Return the rows of a global batch, in order. Costs the spans they lie in, not the epoch."""
        start, stop = self.bounds(batch)
        return self.rows(start, stop)

    def rows(self, start: int, stop: int) -> IntArray:
        """Return the rows at the places `start` … `stop - 1`."""
        first = int(np.searchsorted(self._place_starts, start, side="right")) - 1
        pieces: list[IntArray] = []
        for span in range(first, len(self._place_starts) - 1):
            begin, end = int(self._place_starts[span]), int(self._place_starts[span + 1])
            if begin >= stop:
                break
            pieces.append(self._span(span).rows[max(start, begin) - begin : min(stop, end) - begin])
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def span_of(self, batch: int) -> int:
        """Return the span in which a global batch begins."""
        if self._is_arranged:
            return self._span_of_batch(batch)[0]
        return int(np.searchsorted(self._place_starts, self.bounds(batch)[0], side="right")) - 1

    def span_shards(self, span: int) -> IntArray:
        """Return the shards of a span, in the order they were dealt; none past the last span."""
        first, last = np.searchsorted(self._span_of_shard, [span, span + 1])
        return self._shard_order[first:last]

    # --- what kind of order
    @property
    def _is_arranged(self) -> bool:
        rules = self.request.rules
        return bool(rules.group_by or rules.bucket_by)

    @property
    def _drops(self) -> bool:
        return self.request.rules.last_batch == "drop"

    # --- first level: shards and spans
    @cached_property
    def _cell_counts(self) -> IntArray:
        """Rows of each cell that this epoch has: its own, or as many as are drawn from it."""
        cells = self.selection.cells
        if not self.request.rules.with_replacement:
            return cells.rows
        # Independent draws, counted by cell: how many fall in each is multinomial.
        total = float(cells.weight.sum())
        if self.selection.num_rows == 0:
            return cells.rows
        if total == 0:
            raise InputError(f"data.weights: '{self.request.rules.weights}' is 0 for every row")
        draws = self._generator("draws").multinomial(self.selection.num_rows, cells.weight / total)
        return draws.astype(np.int64)

    @cached_property
    def _shard_counts(self) -> IntArray:
        if self.request.rules.group_by or self.request.rules.with_replacement:
            counts = np.zeros(len(self.selection.shard_rows), dtype=np.int64)
            np.add.at(counts, self.selection.cells.shard, self._cell_counts)
            return counts
        return self.selection.counts

    @cached_property
    def _shard_order(self) -> IntArray:
        num = len(self.selection.shard_rows)
        if not self.request.shuffle:
            return np.arange(num, dtype=np.int64)
        return self._generator("shards").permutation(num).astype(np.int64)

    @cached_property
    def _span_of_shard(self) -> IntArray:
        """The span of each shard, in shuffled order; a shard opens one where the one before it is full."""
        sizes = self._shard_counts[self._shard_order]
        starts = np.cumsum(sizes) - sizes
        return np.unique(starts // self.span_rows, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def _span_groups(self) -> tuple[IntArray, IntArray]:
        """Return the span of each (span, group) that has rows, and its number of rows."""
        cells = self.selection.cells
        span_by_shard = np.empty_like(self._shard_order)
        span_by_shard[self._shard_order] = self._span_of_shard
        num_groups = int(cells.group.max(initial=0)) + 1
        keys, inverse = np.unique(span_by_shard[cells.shard] * num_groups + cells.group, return_inverse=True)
        counts = np.zeros(len(keys), dtype=np.int64)
        np.add.at(counts, inverse, self._cell_counts)
        return keys // num_groups, counts

    @cached_property
    def _span_sizes(self) -> tuple[IntArray, IntArray]:
        """Return (rows, batches) of each span; batches are known only where spans are arranged."""
        num_spans = int(self._span_of_shard.max(initial=-1)) + 1
        rows = np.zeros(num_spans, dtype=np.int64)
        np.add.at(rows, self._span_of_shard, self._shard_counts[self._shard_order])
        if not self._is_arranged:
            return rows, np.zeros_like(rows)
        span, counts = self._span_groups
        return num_arranged(span, counts, num_spans, self.request.batch_size, self.request.rules)

    @cached_property
    def _place_starts(self) -> IntArray:
        """First place of each span, and the number of rows at the end."""
        return np.concatenate([[0], np.cumsum(self._span_sizes[0])]).astype(np.int64)

    @cached_property
    def _batch_starts(self) -> IntArray:
        """First batch of each span, and the number of batches at the end."""
        if self._is_arranged:
            return np.concatenate([[0], np.cumsum(self._span_sizes[1])]).astype(np.int64)
        total, size = int(self._place_starts[-1]), self.request.batch_size
        return np.array([0, total // size if self._drops else -(-total // size)])

    def _span_of_batch(self, batch: int) -> tuple[int, int]:
        span = int(np.searchsorted(self._batch_starts, batch, side="right")) - 1
        return span, batch - int(self._batch_starts[span])

    # --- second level: the rows of a span
    @cached_property
    def _last_span(self) -> dict[int, Arranged]:
        return {}

    def _span(self, span: int) -> Arranged:
        """Return a span's rows in order; the last two are kept, as their batches follow one another."""
        if span not in self._last_span:
            while len(self._last_span) > 1:
                self._last_span.pop(next(iter(self._last_span)))
            self._last_span[span] = self._make_span(span)
        return self._last_span[span]

    def _make_span(self, span: int) -> Arranged:
        rules, selection = self.request.rules, self.selection
        shards = self.span_shards(span).tolist()
        drawn = [self._drawn(shard) for shard in shards]
        starts = np.cumsum(selection.shard_rows) - selection.shard_rows
        rows = _joined(
            [starts[shard] + selection.rows(shard)[own] for shard, own in zip(shards, drawn, strict=True)]
        )
        generator = self._generator(f"rows/{span}")
        if not self._is_arranged:
            return Arranged(
                generator.permutation(rows) if self.request.shuffle else rows, np.empty(0, np.int64)
            )
        zeros = np.zeros(len(rows), dtype=np.int64)
        pairs = list(zip(shards, drawn, strict=True))
        groups = _joined([selection.groups(s)[own] for s, own in pairs]) if rules.group_by else zeros
        lengths = _joined([selection.lengths(s)[own] for s, own in pairs]) if rules.bucket_by else zeros
        return arrange(
            rows, groups, lengths, self.request.batch_size, rules, generator if self.request.shuffle else None
        )

    def _drawn(self, shard: int) -> Any:
        """Return which of a shard's chosen rows this epoch has: all, or the drawn ones with their repeats."""
        if not self.request.rules.with_replacement:
            return slice(None)
        selection, cells = self.selection, self.selection.cells
        weights = selection.weights(shard)
        codes = (
            selection.groups(shard) if self.request.rules.group_by else np.zeros(len(weights), dtype=np.int64)
        )
        generator = self._generator(f"draws/{shard}")
        drawn: list[IntArray] = []
        first, last = np.searchsorted(cells.shard, [shard, shard + 1])
        for cell in range(int(first), int(last)):
            (inside,) = np.nonzero(codes == cells.group[cell])
            if num := int(self._cell_counts[cell]):
                shares = weights[inside] / weights[inside].sum()
                drawn.append(generator.choice(inside, num, p=shares).astype(np.int64))
        return _joined(drawn)

    def _generator(self, what: str) -> np.random.Generator:
        request = self.request
        text = f"order/{request.seed}/{request.stage}/{request.epoch}/{what}".encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def worker_slots(num_slots: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the slots (start, stop) of a worker's contiguous slice of a batch of `num_slots`.

    Slices differ by one at most, join to the batch in rank order, and may be empty.
    """
    return num_slots * rank // world_size, num_slots * (rank + 1) // world_size


def _joined(pieces: list[IntArray]) -> IntArray:
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
