"""A short training of the MindEye task on this process' share of the rows; importable, for `spawn`."""

from pathlib import Path
from typing import Any

import torch

from mindeye_rows import SMALL, mindeye_rows, mindeye_task, of_two_subjects
from voxray.core import collectives
from voxray.testing.sources import ArraySource
from voxray.train.control import Control
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder


def train_share(
    folder: str,
    accumulate: int = 1,
    mixco_fraction: float = 0.5,
    control: Control | None = None,
    voxel2clip: str = "",
    model: dict[str, Any] | None = None,
    joint: bool = False,
) -> None:
    """Train two epochs of three updates of eight rows: one with mixed voxels, one with SoftCLIP. With
    `voxel2clip`, the weights of a run, that part stays as it is, unless `joint`. `model` are further values
    of its section; where they name subjects, the rows are of two.
    """
    task = mindeye_task(
        {
            "model": {**SMALL, "combine_models": joint or not voxel2clip, **(model or {})},
            "objective": {"gallery": 10, "tau": 0.05, "mixco_fraction": mixco_fraction, "alpha_end": 0.05},
            "training": {
                "batch_size": 8 // accumulate,
                "accumulate_grad_batches": accumulate,
                "epochs": 2,
                "learning_rate": 1e-3,
                "schedule": "one_cycle",
                "parts": {"voxel2clip": voxel2clip} if voxel2clip else {},
            },
            "logging": {"log_every_n_steps": 1},
            "checkpoints": {"save_every_n_steps": 1, "keep": 10},
        }
    )
    run = RunFolder(Path(folder))
    run.path.mkdir(parents=True, exist_ok=True)
    made = of_two_subjects if model and "subjects" in model else mindeye_rows
    rows = {"train": made(24, 1), "val": made(12, 2)}
    source = ArraySource(rows, collectives.rank(), collectives.world_size())
    fit(task, source, task.config, run, lambda metrics: None, torch.device("cpu"), control)
