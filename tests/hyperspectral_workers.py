"""Short trainings of the masked autoencoder on this process' share of the rows; importable, for `spawn`."""

import json
from pathlib import Path

import torch

from hyperspectral_rows import SMALL, cube_rows, hyperspectral_task
from voxray.core import collectives
from voxray.core.batch import EpochRequest
from voxray.testing.sources import ArraySource
from voxray.train import parallel
from voxray.train.control import Control
from voxray.train.gradient import GradientStepper
from voxray.train.loop import fit
from voxray.train.optimisation.optim import build_optimizer
from voxray.train.run_folder import RunFolder
from voxray.train.state import TrainState


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


def update_large(folder: str, strategy: str) -> None:
    """Make three updates of mae_large with the experiment's optimiser; rank 0 writes what they gave.

    Cubes of 100 × 100 × 30 instead of 500 × 500: 96 tokens instead of 2,400. All weights but the rows of the
    places' embeddings are the full ones.
    """
    side, bands, num_rows = 100, 30, 2
    values = {
        "model": {"name": "mae_large", "grad_checkpointing": True},
        "training": {"batch_size": num_rows, "steps": 3, "learning_rate": 1e-4, "weight_decay": 0.05},
        "scale": {"strategy": strategy},
    }
    task, device = hyperspectral_task(values, side, bands), torch.device("cpu")
    (stage,) = task.config.resolved_stages()
    torch.manual_seed(0)
    state = TrainState(task.build_model().train())
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    parallel.place(state.model, stage, device)
    state.optimizer = build_optimizer(state.model, stage.training, device)
    module = parallel.wrap(parallel.LossModule(task, state.model), device)
    stepper = GradientStepper(task, state, stage, module, device, Control())
    rows = {"train": cube_rows(num_rows * 3, 0, side, bands)}
    source = ArraySource(rows, collectives.rank(), collectives.world_size())
    found: list[dict[str, float]] = []
    for columns in source.batches(EpochRequest("train", num_rows, seed=0)):
        outcome = stepper.update([task.augment(task.collate(columns), 0)])
        losses = {name: float(total / count) for name, (total, count) in outcome.terms.items()}
        found.append(losses | {"grad_norm": float(outcome.grad_norm)})
    whole = parallel.model_state(state.model)
    norms = {name: float(value.double().norm()) for name, value in whole.items()}
    if collectives.rank() == 0:
        is_split = parallel.is_split_model(state.model)
        text = json.dumps([num_parameters, is_split, found, norms])
        (Path(folder) / "found.json").write_text(text)
