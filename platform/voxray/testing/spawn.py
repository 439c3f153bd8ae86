"""Run a function on several real processes joined by gloo, on CPU: distributed logic is tested for real."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def spawn(world_size: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(*args)` on `world_size` processes of one gloo group; an exception on any rank is raised
    here.

    `function` comes from an importable module. Results travel by files that `args` name.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_processes(_worker, (world_size, port, function, args), nprocs=world_size, start_method="spawn")


def _worker(
    rank: int, world_size: int, port: int, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        function(*args)
    finally:
        dist.destroy_process_group()
