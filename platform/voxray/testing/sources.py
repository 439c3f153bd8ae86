"""A batch source over arrays in memory, in the same order and slices as a prepared dataset's."""

from collections.abc import Iterator, Mapping

import numpy as np

from voxray.core.batch import Columns, EpochRequest
from voxray.data.order import epoch_order, num_batches, worker_slice


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
        order = epoch_order(num_rows, request.seed, request.stage, request.epoch, request.shuffle)
        for batch in range(request.start_batch, num_batches(num_rows, request.batch_size)):
            start = batch * request.batch_size
            part = worker_slice(min(request.batch_size, num_rows - start), self._rank, self._world_size)
            assert part.stop > part.start, (
                "an ArraySource has no padding: use batches of at least world_size rows"
            )
            places = np.arange(start + part.start, start + part.stop)
            chosen = {name: values[order[places]] for name, values in columns.items()}
            yield {**chosen, "valid": np.ones(len(places), bool), "position": places}
