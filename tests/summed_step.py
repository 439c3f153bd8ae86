"""One update of the chest X-ray task's loss on a model of a few numbers; importable, for `spawn`."""

from pathlib import Path

import numpy as np
import torch

from voxray.core import collectives
from voxray.tasks.cxr_memory.config import LABELS, Config
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.sources import ArraySource
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

UNKNOWN_SHARE = 0.1


def rows(num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Small random images; the last label is never present, the one before it always."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, len(LABELS))) < 0.4).astype(np.float32)
    labels[rng.random(labels.shape) < UNKNOWN_SHARE] = np.nan
    labels[:, -1], labels[:, -2] = 0, 1
    names = np.array([f"{seed}_{i:04d}.png" for i in range(num_rows)], dtype=object)
    patients = np.array([f"p{i // 2}" for i in range(num_rows)], dtype=object)
    image = rng.integers(0, 256, (num_rows, 1, 32, 32), dtype=np.uint8)
    return {"sample_id": names, "patient_id": patients, "image": image, "labels": labels}


class Logits(torch.nn.Module):
    """One logit per label, the same for all images."""

    bank = None

    def __init__(self) -> None:
        super().__init__()
        self.logit_K = torch.nn.Parameter(torch.linspace(-2, 2, len(LABELS)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logit_K.expand(len(image), -1)


class LogitsTask(CxrMemory):
    """The task with that model."""

    def build_model(self) -> torch.nn.Module:
        return Logits()


def first_step(folder: str, reduction: str) -> None:
    """Train one update of 12 rows in two micro-batches with the asymmetric loss, and log it."""
    training = {"batch_size": 6, "accumulate_grad_batches": 2, "steps": 1, "optimizer": "sgd"}
    config = Config.model_validate(
        {
            "training": training | {"learning_rate": 1e-3, "weight_decay": 0.0, "clip_grad_norm": None},
            "objective": {"reduction": reduction, "augment": False, "loss": "asl"},
            "logging": {"log_every_n_steps": 1},
        }
    )
    run = RunFolder(Path(folder))
    run.path.mkdir(parents=True, exist_ok=True)
    source = ArraySource(
        {"train": rows(12, 0), "val": rows(8, 1)}, collectives.rank(), collectives.world_size()
    )
    fit(LogitsTask(config), source, config, run, lambda metrics: None, torch.device("cpu"))
