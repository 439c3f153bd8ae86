"""How the rows of one span meet in batches under a grouping rule, length buckets, or both.

With `group_by` and `groups_per_batch` = g a batch of b rows holds rows of at most g groups: each group's
rows are cut into chunks of b // g, and a batch is dealt g chunks, of different groups as far as there are
such. With `bucket_by` rows of like length meet: rows, and then chunks, are sorted by length times a random
factor of 0.95 … 1.05, so that two epochs cut them differently. Batches are permuted at the end. The number of
batches follows from the groups' sizes alone: ceil(chunks / g), or with `last_batch: drop` the floor over full
chunks.
"""

from dataclasses import dataclass

import numpy as np

from voxray.core.batch import BatchRules
from voxray.data.selection import IntArray

LENGTH_NOISE = 0.1  # width of the random factor that lengths are sorted by
# Batches whose chunks of like length are dealt together: room to find chunks of different groups.
BATCHES_PER_POOL = 8


@dataclass(frozen=True)
class Arranged:
    """A span's rows in order, and where each of its batches ends among them."""

    rows: IntArray
    ends: IntArray


def chunk_size(batch_size: int, rules: BatchRules) -> int:
    """Return the rows of one group that a batch takes together."""
    return max(1, batch_size // rules.groups_per_batch) if rules.group_by else batch_size


def chunks_per_batch(batch_size: int, rules: BatchRules) -> int:
    """Return the chunks of a full batch."""
    return min(rules.groups_per_batch, batch_size) if rules.group_by else 1


def num_arranged(
    span: IntArray, rows: IntArray, num_spans: int, batch_size: int, rules: BatchRules
) -> tuple[IntArray, IntArray]:
    """Return (rows delivered, batches) of each span from the rows of each (span, group)."""
    size, per_batch = chunk_size(batch_size, rules), chunks_per_batch(batch_size, rules)
    drop = rules.last_batch == "drop"
    chunks = np.zeros(num_spans, dtype=np.int64)
    np.add.at(chunks, span, rows // size if drop else -(-rows // size))
    batches = chunks // per_batch if drop else -(-chunks // per_batch)
    if drop:
        return batches * per_batch * size, batches
    delivered = np.zeros(num_spans, dtype=np.int64)
    np.add.at(delivered, span, rows)
    return delivered, batches


def arrange(
    rows: IntArray,
    groups: IntArray,
    lengths: IntArray,
    batch_size: int,
    rules: BatchRules,
    generator: np.random.Generator | None,
) -> Arranged:
    """Deal a span's rows to batches; all arrays are [N]. Without a generator nothing is random."""
    if generator is None:
        by, tie = lengths.astype(np.float64), np.arange(len(rows))
    else:
        factor = 1 + LENGTH_NOISE * (generator.random(len(rows)) - 0.5)
        by, tie = lengths * factor, generator.permutation(len(rows))
    order, chunk_of_row = _cut(groups, by, tie, chunk_size(batch_size, rules), rules.last_batch == "drop")
    num_chunks = int(chunk_of_row.max(initial=-1)) + 1
    group_of_chunk = np.zeros(num_chunks, dtype=np.int64)
    group_of_chunk[chunk_of_row] = groups[order]
    total_of_chunk = np.bincount(chunk_of_row, weights=by[order], minlength=num_chunks)
    length_of_chunk = total_of_chunk / np.maximum(1, np.bincount(chunk_of_row, minlength=num_chunks))
    batch_of_chunk, num_batches = _deal(
        group_of_chunk, length_of_chunk, chunks_per_batch(batch_size, rules), rules, generator
    )
    rank = np.arange(num_batches) if generator is None else generator.permutation(num_batches)
    batch_of_row = np.append(rank, -1)[batch_of_chunk][chunk_of_row]
    kept = np.flatnonzero(batch_of_row >= 0)
    kept = kept[np.lexsort((chunk_of_row[kept], batch_of_row[kept]))]
    ends = np.cumsum(np.bincount(batch_of_row[kept], minlength=num_batches))
    return Arranged(rows[order[kept]], ends.astype(np.int64))


def _cut(groups: IntArray, by: np.ndarray, tie: IntArray, size: int, drop: bool) -> tuple[IntArray, IntArray]:
    """Return rows sorted by (group, length, chance) and the chunk of each; short chunks may be dropped."""
    order = np.lexsort((tie, by, groups))
    sorted_groups = groups[order]
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=-1))
    inside = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    if drop:
        group_size = np.repeat(np.diff(np.append(starts, len(order))), np.diff(np.append(starts, len(order))))
        full = inside < group_size // size * size
        order, sorted_groups, inside = order[full], sorted_groups[full], inside[full]
    opens = inside % size == 0
    return order, np.cumsum(opens) - 1


def _deal(
    group: IntArray,
    length: np.ndarray,
    per_batch: int,
    rules: BatchRules,
    generator: np.random.Generator | None,
) -> tuple[IntArray, int]:
    """Return the batch of each chunk (-1: left out) and the number of batches."""
    num = len(group)
    chance = np.arange(num) if generator is None else generator.permutation(num)
    group_chance = np.arange(int(group.max(initial=0)) + 1)
    if generator is not None:
        group_chance = generator.permutation(group_chance)
    sequence = np.lexsort((chance, length)) if rules.bucket_by else chance
    batch_of_chunk = np.full(num, -1, dtype=np.int64)
    pool_chunks = BATCHES_PER_POOL * per_batch if rules.bucket_by else max(1, num)
    num_batches = 0
    for start in range(0, num, pool_chunks):
        pool = sequence[start : start + pool_chunks]
        own = len(pool) // per_batch if rules.last_batch == "drop" else -(-len(pool) // per_batch)
        if own == 0:
            break
        if rules.last_batch == "drop":
            pool = pool[: own * per_batch]
        # A group's chunks stand together, so dealing them in turn gives them to different batches.
        by_group = pool[np.lexsort((chance[pool], group_chance[group[pool]]))]
        batch_of_chunk[by_group] = num_batches + np.arange(len(pool)) % own
        num_batches += own
    return batch_of_chunk, num_batches
