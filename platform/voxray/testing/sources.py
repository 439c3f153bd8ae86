"""A batch source over arrays in memory, in the same order and slices as a prepared dataset of one shard."""

from collections.abc import Iterator, Mapping

import numpy as np

from voxray.core.batch import Columns, EpochRequest
from voxray.data.order import EpochOrder, batch_places, num_batches


class ArraySource:
    """Serves each split from a dict of columns; rows first, `sample_id` among them."""

    def __init__(
        self, splits: Mapping[str, dict[str, np.ndarray]], rank: int = 0, world_size: int = 1
    ) -> None:
        """Keep the arrays; nothing is copied."""
        self._splits, self._rank, self._world_size = splits, rank, world_size

    def num_rows(self, split: str) -> int:
        """Rows of the split; 0 where there is no such split."""
        return len(self._splits[split]["sample_id"]) if split in self._splits else 0

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch."""
        columns = self._splits[request.split]
        num_rows = self.num_rows(request.split)
        order = EpochOrder(
            (num_rows,), request.seed, request.stage, request.epoch, request.shuffle, group_rows=num_rows
        )
        for batch in range(request.start_batch, num_batches(num_rows, request.batch_size)):
            start, stop = batch_places(batch, request.batch_size, num_rows, self._rank, self._world_size)
            assert stop > start, "an ArraySource has no padding: use batches of at least world_size rows"
            chosen = {name: values[order.rows(start, stop)] for name, values in columns.items()}
            yield {**chosen, "valid": np.ones(stop - start, bool), "position": np.arange(start, stop)}
