"""How much memory and disk a run takes, before it starts: counted from its parameters, not measured."""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.batch import Batch
from voxray.core.run_config import RunConfig, Stage
from voxray.train.config import TrainingConfig


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker needs for a stage. What a forward pass keeps for the backward pass is not in it:
    no count of parameters tells it.
    """

    weights: int
    gradients: int
    moments: int  # of the optimiser
    average: int  # the moving average of the weights
    batch: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory_of(model: nn.Module, stage: Stage) -> Memory:
    """Return what a stage needs on one worker; `model` may be on the meta device, its trainable parameters
    chosen. FSDP splits parameters, gradients and moments over the workers.
    """
    training, scale = stage.training, stage.config.scale
    shards = scale.most_workers if scale.strategy == "fsdp" else 1
    parameters = _bytes(model.parameters())
    trainable = _bytes(p for p in model.parameters() if p.requires_grad)
    if training.stepper == "closed_form":
        trainable = 0
    return Memory(
        weights=parameters // shards + _bytes(model.buffers()),
        gradients=trainable // shards,
        moments=_num_moments(training) * trainable // shards,
        average=parameters + _bytes(model.buffers()) if training.ema_decay else 0,
    )


def _num_moments(training: TrainingConfig) -> int:
    if training.optimizer == "sgd":
        return 1 if training.momentum else 0
    return 2


def checkpoint_bytes(model: nn.Module, stage: Stage) -> int:
    """Return the size of one checkpoint of a stage: weights, moving average, the optimiser's moments."""
    memory = memory_of(model, stage)
    whole = _bytes(model.parameters()) + _bytes(model.buffers())
    shards = stage.config.scale.most_workers if stage.config.scale.strategy == "fsdp" else 1
    return whole + memory.average + memory.moments * shards


def num_checkpoints(config: RunConfig) -> int:
    """Return how many checkpoints lie side by side at most: those that are kept, each stage's best, where the
    earlier stages ended, and the one that is being written.
    """
    num_stages = len(config.resolved_stages())
    best = num_stages if config.checkpoints.save_best else 0
    return config.checkpoints.keep + best + (num_stages - 1) + 1


def free_disk(folder: Path) -> int:
    """Return the free bytes where `folder` is, or will be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_disk(config: RunConfig, one: int, folder: Path) -> None:
    """Raise InputError when the run's checkpoints, of `one` bytes each, cannot fit beside `folder`."""
    num, free = num_checkpoints(config), free_disk(folder)
    if num * one > free:
        raise InputError(
            f"the checkpoints take {gigabytes(num * one)} ({num} of {gigabytes(one)}), but {folder} has "
            f"{gigabytes(free)} free; lower checkpoints.keep or choose another storage.path"
        )


def free_memory(device: torch.device) -> int:
    """Return the free bytes of the device: of the GPU, or of this machine and its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _available()
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no such file, or `max`: no limit
        return free
    return min(free, limit - used)


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of a batch's tensors."""
    sizes: list[int] = []
    batch.mapped(lambda tensor: (sizes.append(tensor.nbytes), tensor)[1])
    return sum(sizes)


def gigabytes(num_bytes: int) -> str:
    """Return a size for people: `1.25 GB`, or `3.1 MB` below 0.1 GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
