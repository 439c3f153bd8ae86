"""A batch source over arrays in memory, in the same order and slices as a prepared dataset of one shard."""

from collections.abc import Iterator, Mapping

import numpy as np

from voxray.core.batch import Columns, EpochRequest
from voxray.data.order import EpochOrder, worker_slots
from voxray.data.selection import Selection


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

    def num_batches(self, request: EpochRequest) -> int:
        """Return the number of global batches of an epoch."""
        return self._order(request).num_batches

    def batches(self, request: EpochRequest) -> Iterator[Columns]:
        """Yield this worker's slice of each global batch."""
        order = self._order(request)
        for batch in range(request.start_batch, order.num_batches):
            first, last = order.bounds(batch)
            start, stop = worker_slots(last - first, self._rank, self._world_size)
            assert stop > start, "an ArraySource has no padding: use batches of at least world_size rows"
            rows = order.batch_rows(batch)[start:stop]
            chosen = {name: values[rows] for name, values in self._splits[request.split].items()}
            yield {
                **chosen,
                "valid": np.ones(stop - start, bool),
                "position": np.arange(first + start, first + stop),
            }

    def _order(self, request: EpochRequest) -> EpochOrder:
        num_rows = self.num_rows(request.split)
        return EpochOrder(Selection([num_rows], request.rules), request, span_rows=max(1, num_rows))
