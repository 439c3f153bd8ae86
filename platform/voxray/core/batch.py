"""`Batch`: the typed rows of one micro-batch on one worker, and where batches come from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

# Columns as they leave the data layer: one array per column, rows first; text columns are object arrays of
# str.
Columns = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch on one worker. Subclasses add tensors, rows first.

    `valid_B` is False for rows that only pad the batch, so that all workers have equally many rows; they must
    count in no loss and no metric. `position_B` is each row's place in the epoch's order, the key of its
    randomness.
    """

    sample_id: list[str]
    group_id: list[str]
    valid_B: torch.Tensor
    position_B: torch.Tensor

    def __len__(self) -> int:
        """Rows on this worker, padding included."""
        return len(self.sample_id)

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on `device`."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class EpochRequest:
    """Which batches are wanted: the order is a pure function of these values and the dataset's manifest."""

    split: str
    batch_size: int  # rows over all workers
    seed: int
    stage: int = 0
    epoch: int = 0
    shuffle: bool = True
    start_batch: int = 0  # batches of this epoch that were consumed before


class BatchSource(Protocol):
    """Where the loop gets its rows from: Ray Data, shards read in-process, or a list in a test."""

    def num_rows(self, split: str) -> int:
        """Rows of `split` over all workers."""
        ...

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch, with the columns `valid` and `position` added.

        The arrays may be used again for a later batch: they are the caller's until it asks for the next one.
        """
        ...
