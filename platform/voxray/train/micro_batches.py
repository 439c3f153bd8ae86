"""From a request to the micro-batches of one update after the other, on the device and augmented."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import torch

from voxray.core import collectives
from voxray.core.batch import Batch, EpochRequest
from voxray.core.randomness import key
from voxray.core.task import Task
from voxray.train.device import on_device
from voxray.train.fit_context import Fit


@dataclass(frozen=True)
class Group:
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
    batches = on_device((task.collate(columns) for columns in loop.source.batches(request)), loop.device)
    while True:
        before = time.monotonic()
        taken = list(islice(batches, per_update))
        if not taken:
            return
        rows = sum(len(batch) for batch in taken) if taken else 0
        valid = sum(int(batch.valid_B.sum()) for batch in taken) if loop.device.type == "cpu" else rows
        parts = [part for batch in taken for part in cut(batch, loop.run.micro_batch_parts)]
        augmented = [task.augment(part, augment_key) for part in parts]
        yield Group(augmented, len(taken), valid, time.monotonic() - before)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """Return a batch cut into at most `parts` batches of like size, as many on every worker, none empty."""
    if parts == 1:
        return [batch]
    fewest = min(collectives.all_gather_objects(len(batch)))
    parts = min(parts, fewest)
    bounds = torch.linspace(0, len(batch), parts + 1).round().int().tolist()
    return [batch.rows(slice(first, last)) for first, last in pairwise(bounds)]
