"""`Batch`: the typed rows of one micro-batch on one worker, and where batches come from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, Self, cast

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
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, part: slice) -> Self:
        """Return some of the rows: a slice of every tensor and of every list that has an entry per row."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists: dict[str, Any] = {
            name: value[part]
            for name, value in values.items()
            if isinstance(value, list) and len(cast(list[Any], value)) == len(self)
        }
        return replace(self.mapped(lambda tensor: tensor[part]), **lists)

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Return the batch with `function` of each tensor; dicts of tensors are gone through too."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {n: function(v) for n, v in values.items() if isinstance(v, torch.Tensor)}
        for name, value in values.items():
            if isinstance(value, dict):
                tensors = cast(dict[str, torch.Tensor], value)
                changed[name] = {key: function(tensor) for key, tensor in tensors.items()}
        return replace(self, **changed)


def as_tensor(values: np.ndarray[Any, Any], dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a column as a tensor: in the column's own memory where that can be written and is aligned to 64
    bytes, so that the same sums come out bit for bit; else as a copy.

    The data layer does not write a batch's memory again while a tensor refers to it.
    """
    if not (values.flags.writeable and values.flags.c_contiguous):
        return torch.tensor(values, dtype=dtype)
    tensor: torch.Tensor = torch.from_numpy(values)  # pyright: ignore[reportUnknownMemberType]
    if tensor.data_ptr() % 64:
        tensor = tensor.clone()
    return tensor if dtype is None else tensor.to(dtype)


@dataclass(frozen=True)
class BatchRules:
    """Which rows an epoch is made of and how they meet in batches; the keys of the `data` section.

    `with_replacement` draws rows independently, with probability proportional to `weights`, as many as there
    are: no promise is made that each comes, or comes once.
    """

    filters: tuple[str, ...] = ()
    limit: int | None = None
    weights: str = ""
    with_replacement: bool = False
    group_by: str = ""
    groups_per_batch: int = 1
    bucket_by: str = ""
    last_batch: Literal["keep", "pad", "drop"] = "keep"

    @property
    def length_column(self) -> str:
        """The index column that length buckets go by: a ragged column's lengths."""
        return f"{self.bucket_by}.length" if self.bucket_by else ""


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
    rules: BatchRules = BatchRules()
    followed: bool = False  # the next epoch will be asked for after this one, so it may be read ahead


class BatchSource(Protocol):
    """Where the loop gets its rows from: Ray Data, shards read in-process, or a list in a test."""

    def num_rows(self, split: str) -> int:
        """Rows of `split` over all workers."""
        ...

    def num_batches(self, request: EpochRequest) -> int:
        """Return the number of global batches of the whole epoch that is asked for."""
        ...

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch, with the columns `valid` and `position` added.

        The arrays are the caller's: their memory is not written again while one of them lives.
        """
        ...
