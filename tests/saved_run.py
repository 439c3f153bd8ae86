"""Writes a run's folder as training leaves it, with weights that the test gives: no training, no Ray."""

from pathlib import Path

from torch import nn

from voxray.core.run_config import RunConfig
from voxray.data.manifest import load_manifest
from voxray.train.checkpoints.checkpoint import Best, Saver, last
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.run_folder import RunFolder
from voxray.train.trained.dataset_facts import DatasetFacts


def begin_run(folder: Path, config: RunConfig) -> RunFolder:
    """Write what a run writes before its first update."""
    run = RunFolder(folder)
    run.write_config(config, {})
    DatasetFacts.of(config.data.path, load_manifest(config.data.path)).write(folder)
    return run


def save_weights(
    run: RunFolder,
    config: RunConfig,
    step: int,
    model: nn.Module,
    ema: nn.Module | None = None,
    stage: int = 0,
    is_best: bool = False,
) -> Path:
    """Save a checkpoint of a stage, newer than those before, as training does."""
    tensors = {"model": model.state_dict()} | ({"ema": ema.state_dict()} if ema else {})
    taken = snapshot(step, tensors, {"stage": stage}, config.model_dump(mode="json"))
    best = Best("val/loss", 0.5, f"stage{stage}", stage) if is_best else None
    Saver(run.checkpoints, keep=10, asynchronous=False, tell=print).save(taken, best)
    saved = last(run.checkpoints)
    assert saved is not None
    return saved
