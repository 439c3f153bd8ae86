"""torch.distributed, and the identity when a process is alone: the loop reads the same either way."""

from typing import Any

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank, 0 when alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return how many processes train together, 1 when alone."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of `value` over all workers; `value` itself when alone."""
    if not is_distributed():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def all_gather_objects(value: Any) -> list[Any]:
    """Return every worker's `value` in rank order."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait for all workers."""
    if is_distributed():
        dist.barrier()
