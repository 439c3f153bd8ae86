"""Memory for batches that is written again once nobody holds what lay in it.

Pages that are touched for the first time cost twice a copy, so buffers are kept. Each is watched by its
reference count: numpy views and the tensors made from them keep it, and while one lives it is not reused.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd, prod

import numpy as np

from voxray.core.schema import Column
from voxray.data.row_copies import Destination, Slots, Stack, is_copied_singly, is_copied_together
from voxray.data.shards import inner_shape

ALIGNMENT = 64  # bytes: the same sums, bit for bit, whichever buffer a batch lies in (MKL)
RAGGED_HEADROOM = 1.25  # a ragged column's batches differ in size


@dataclass(frozen=True)
class Room:
    """One column of some batches, [B, *shape] each, and where its rows go, counted over all batches."""

    batches: list[np.ndarray]
    to: Destination


class Buffers:
    """Arrays by column. Threads may share it."""

    def __init__(self, pinned: bool = False, for_threads: bool = False) -> None:
        """Begin without memory; `pinned` memory is page-locked, for copies to a GPU.

        With `for_threads`, rows are copied so that several threads can do it at a time, which needs torch.
        """
        self._kept: dict[str, list[np.ndarray]] = {}
        self._pinned, self._for_threads = pinned, for_threads
        self._lock = threading.Lock()

    def room(
        self, name: str, column: Column, nums: Sequence[int], lengths: Sequence[np.ndarray] = ()
    ) -> Room:
        """Return room for a column of batches of `nums` rows; `lengths` are those of ragged rows, by batch.

        A ragged column's batch is [B, its longest, *rest].
        """
        if not is_copied_singly(column):
            array, starts = self._stretch(name, column, nums)
            batches = [array[start : start + num] for start, num in zip(starts, nums, strict=True)]
            places = [np.arange(start, start + num) for start, num in zip(starts, nums, strict=True)]
            return Room(batches, Slots(array, np.concatenate(places)))
        if column.ragged:
            longest = [int(own.max(initial=0)) for own in lengths]
            entries = self.arrays(name, column, [n * size for n, size in zip(nums, longest, strict=True)])
            batches = [
                array.reshape(num, size, *array.shape[1:])
                for array, num, size in zip(entries, nums, longest, strict=True)
            ]
        elif self._for_threads and is_copied_together(column):
            return self._stack(name, column, nums)
        else:
            batches = self.arrays(name, column, nums)
        return Room(batches, [row for batch in batches for row in batch])

    def _stack(self, name: str, column: Column, nums: Sequence[int]) -> Room:
        """Return one array for all batches where each is aligned in it, else an array for each."""
        row_bytes = prod(inner_shape(column)) * np.dtype(column.dtype).itemsize
        if any(num * row_bytes % ALIGNMENT for num in nums[:-1]):
            batches = self.arrays(name, column, nums)
            return Room(batches, Stack(batches))
        (array,) = self.arrays(name, column, [sum(nums)])
        starts = accumulate(nums, initial=0)
        return Room(
            [array[start : start + num] for start, num in zip(starts, nums, strict=False)], Stack([array])
        )

    def _stretch(self, name: str, column: Column, nums: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """Return one array for all batches, and the first row of each: one that is aligned."""
        if not column.is_tensor:
            return np.empty(sum(nums), dtype=object), list(accumulate(nums, initial=0))[:-1]
        row_bytes = prod(inner_shape(column)) * np.dtype(column.dtype).itemsize
        step = ALIGNMENT // gcd(ALIGNMENT, row_bytes)
        starts = list(accumulate((-(-num // step) * step for num in nums), initial=0))
        (array,) = self.arrays(name, column, starts[-1:])
        return array, starts[:-1]

    def arrays(self, name: str, column: Column, nums: Sequence[int]) -> list[np.ndarray]:
        """Return arrays [num, *shape] of a tensor column (of entries, for a ragged one), in one piece.

        They are the caller's while it holds one of them.
        """
        inner = inner_shape(column)
        row_bytes = prod(inner) * np.dtype(column.dtype).itemsize
        starts = [0, *accumulate(-(-num * row_bytes // ALIGNMENT) * ALIGNMENT for num in nums)]
        memory = self._memory(name, starts[-1], column.ragged)
        return [
            memory[start : start + num * row_bytes].view(column.dtype).reshape(num, *inner)
            for start, num in zip(starts, nums, strict=False)
        ]

    def _memory(self, name: str, size: int, is_ragged: bool) -> np.ndarray:
        """Return a view of `size` bytes of a buffer that nobody refers to."""
        with self._lock:
            kept = self._kept.setdefault(name, [])
            index = next((i for i in range(len(kept)) if kept[i].size >= size and _is_free(kept, i)), None)
            if index is None:
                too_small = (i for i in range(len(kept)) if _is_free(kept, i))
                if (small := next(too_small, None)) is not None:
                    kept.pop(small)
                kept.append(self._new(int(size * RAGGED_HEADROOM) if is_ragged else size))
                index = -1
            return kept[index][:size]

    def _new(self, size: int) -> np.ndarray:
        if not self._pinned:
            room = np.empty(size + ALIGNMENT, np.uint8)
            start = -room.__array_interface__["data"][0] % ALIGNMENT
            # As an array over the room's memory, and not a view of it, it is what later views refer to.
            return np.frombuffer(room.data[start : start + size], np.uint8)
        import torch

        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


def _is_free(kept: list[np.ndarray], index: int) -> bool:
    """Whether nobody but the list refers to a buffer: the list and the call's argument are two."""
    return sys.getrefcount(kept[index]) == 2
