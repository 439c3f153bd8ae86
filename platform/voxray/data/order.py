"""The order of an epoch: a pure function of (seed, stage, epoch) and the number of rows, whatever the worker
count.
"""

import hashlib
from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]


def epoch_order(num_rows: int, seed: int, stage: int, epoch: int, shuffle: bool) -> IntArray:
    """Return 0 … num_rows-1 in the order of this epoch: each once, permuted unless `shuffle` is off."""
    if not shuffle:
        return np.arange(num_rows, dtype=np.int64)
    digest = hashlib.blake2b(f"order/{seed}/{stage}/{epoch}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))
    return generator.permutation(num_rows).astype(np.int64)


def num_batches(num_rows: int, batch_size: int) -> int:
    """Return the number of global batches of an epoch; the last one may be short and is kept."""
    return -(-num_rows // batch_size)


def worker_slice(batch_len: int, rank: int, world_size: int) -> slice:
    """Return rank's contiguous part of a global batch; parts differ by one row at most and may be empty."""
    return slice(batch_len * rank // world_size, batch_len * (rank + 1) // world_size)
