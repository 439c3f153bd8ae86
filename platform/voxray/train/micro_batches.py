"""From a request to the micro-batches of one update after the other, on the device and augmented."""

import time
from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch

from voxray.core import collectives
from voxray.core.batch import Batch, EpochRequest
from voxray.core.randomness import key
from voxray.core.task import Task
from voxray.train.device import on_device
from voxray.train.fit_context import Fit


class Group(NamedTuple):
    """The micro-batches of one update on this worker, and the seconds it waited for them.

    `num_batches` counts what was asked of the data; where memory is short each is cut into several.
    """

    micro_batches: list[Batch]
    num_batches: int
    num_rows: int
    waited_s: float

    @property
    def sample_ids(self) -> list[str]:
        """The ids of this worker's rows, padding left out."""
        return [
            name
            for batch in self.micro_batches
            for name, valid in zip(batch.sample_id, batch.valid_B.tolist(), strict=True)
            if valid
        ]


def updates(loop: Fit, task: Task, request: EpochRequest, per_update: int) -> Iterator[Group]:
    """Yield the micro-batches of one update after the other."""
    augment_key = key(request.seed, "augment", request.stage, request.epoch)
    num_parts = loop.run.micro_batch_parts
    num_rows: deque[int] = deque()  # of the batches on their way, counted where the host need not wait

    def collated() -> Iterator[Batch]:
        for columns in loop.source.batches(request):
            num_rows.append(int(np.count_nonzero(columns["valid"])))
            yield task.collate(columns)

    batches = on_device(collated(), loop.device)
    while True:
        before = time.monotonic()
        taken = list(islice(batches, per_update))
        if not taken:
            return
        parts = [part for batch in taken for part in cut(batch, num_parts)]
        augmented = [task.augment(part, augment_key) for part in parts]
        rows = sum(num_rows.popleft() for _ in taken)
        yield Group(augmented, len(taken), rows, time.monotonic() - before)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """Return a batch cut into at most `parts` batches of like size, as many on every worker, none empty."""
    if parts == 1:
        return [batch]
    fewest = min(collectives.all_gather_objects(len(batch)))
    parts = min(parts, fewest)
    bounds = torch.linspace(0, len(batch), parts + 1).round().int().tolist()
    return [batch.rows(slice(first, last)) for first, last in pairwise(bounds)]
