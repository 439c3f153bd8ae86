"""Run a function on several real processes joined by gloo, on CPU: distributed logic is tested for real."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def spawn(world_size: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(*args)` on `world_size` processes of one gloo group; any exception is raised here.

    `function` comes from an importable module. Results travel by files that `args` name. The processes meet
    through a file, since a port that was free a moment ago may be taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        start_processes(
            _worker, (world_size, meeting, function, args), nprocs=world_size, start_method="spawn"
        )


def _worker(
    rank: int, world_size: int, meeting: str, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    try:
        function(*args)
    finally:
        dist.destroy_process_group()
