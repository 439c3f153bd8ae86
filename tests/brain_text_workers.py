"""A short training of all three losses on this process' share of the trials; importable, for `spawn`."""

from pathlib import Path

import torch

from trial_rows import SMALL, brain_task, trial_rows
from voxray.core import collectives
from voxray.testing.sources import ArraySource
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder


def train_share(folder: str) -> None:
    """Train three updates of six trials, with adapters in the language model and trials compared over all
    workers, and log each.
    """
    task = brain_task(
        {
            "model": {**SMALL, "llm": {"source": "tiny", "lora": {"rank": 2}}},
            "objective": {"alpha": 1.0, "align": "info_nce", "beta": 0.1, "gamma": 0.1},
            "decoding": {"max_new_tokens": 4},
            "training": {"batch_size": 6, "steps": 3, "learning_rate": 0.01, "warmup_fraction": 0.0},
            "logging": {"log_every_n_steps": 1},
        }
    )
    run = RunFolder(Path(folder))
    run.path.mkdir(parents=True, exist_ok=True)
    rows = {"train": trial_rows(18, 0), "val": trial_rows(12, 1)}
    source = ArraySource(rows, collectives.rank(), collectives.world_size())
    fit(task, source, task.config, run, lambda metrics: None, torch.device("cpu"))
