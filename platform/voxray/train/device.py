"""Batches on the device, copied one batch ahead of the step on a stream of their own."""

from collections.abc import Iterator

import torch

from voxray.core.batch import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on `device`. On a GPU a batch is copied beside the step of the one before it."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            moved = _pinned(batch).to(device)
            copied = torch.cuda.Event()
            copied.record(side)
        if waiting is not None:
            yield _ready(*waiting)
        copied.synchronize()  # the host's memory is free for a later batch now
        waiting = moved, copied
    if waiting is not None:
        yield _ready(*waiting)


def _ready(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Let the current stream wait for the copy, and keep the memory while it is used there."""
    stream = torch.cuda.current_stream()
    stream.wait_event(copied)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(stream)
        return tensor

    return batch.mapped(keep)


def _pinned(batch: Batch) -> Batch:
    return batch.mapped(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory())
