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


def all_gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows [N, …] of all workers in rank order; how many each has may differ."""
    if not is_distributed():
        return rows
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    numbers = [int(count) for count in counts]
    padded = rows.new_zeros((max(numbers), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:number] for part, number in zip(gathered, numbers, strict=True)])


def barrier() -> None:
    """Wait for all workers."""
    if is_distributed():
        dist.barrier()
