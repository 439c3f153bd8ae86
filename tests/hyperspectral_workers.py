"""A short training of the masked autoencoder on this process' share of the rows; importable, for `spawn`."""

from pathlib import Path

import torch

from hyperspectral_rows import SMALL, cube_rows, hyperspectral_task
from voxray.core import collectives
from voxray.testing.sources import ArraySource
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder


def train_share(folder: str, strategy: str, accumulate: int) -> None:
    """Train four updates of eight rows, with a variance term that weighs, and log each."""
    task = hyperspectral_task(
        {
            "model": SMALL,
            "objective": {"variance": 1.0},
            "training": {
                "batch_size": 8 // accumulate,
                "accumulate_grad_batches": accumulate,
                "steps": 4,
                "optimizer": "sgd",
                "learning_rate": 0.05,
                "schedule": "constant",
                "warmup_fraction": 0.0,
            },
            "logging": {"log_every_n_steps": 1},
            "scale": {"strategy": strategy},
            "figures": {"dpi": 30, "enabled": strategy == "fsdp"},
        }
    )
    run = RunFolder(Path(folder))
    run.path.mkdir(parents=True, exist_ok=True)
    rows = {"train": cube_rows(33, 0), "val": cube_rows(12, 1)}
    source = ArraySource(rows, collectives.rank(), collectives.world_size())
    fit(task, source, task.config, run, lambda metrics: None, torch.device("cpu"))
