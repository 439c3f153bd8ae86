"""`voxray train --fast-dev-run`: a few updates of every stage, so that each part of a run is tried once:
training, evaluation, saving, loading. It is no run: its folder is its own and is made anew each time.
"""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from voxray.config.errors import InputError
from voxray.config.resolve import Resolved
from voxray.core.run_config import RunConfig
from voxray.train.launch import launch
from voxray.train.run_folder import RunFolder, run_folder
from voxray.train.trained.evaluate_run import evaluate_run
from voxray.train.trained.load import load

SUFFIX = "-fast-dev-run"
NUM_UPDATES = 3
# What a stage may set itself and a fast run sets for it.
_SHORT: dict[str, Any] = {
    "steps": NUM_UPDATES,
    "lr_finder": "off",
    "early_stopping": False,
    "validate_every": {"epochs": 1, "steps": None},
}


def fast_dev_run(resolved: Resolved[RunConfig], console: Console) -> tuple[RunFolder, dict[str, Any]]:
    """Train a few updates on few rows, load what was saved, evaluate it; return the folder and the result.

    The caller has connected to Ray. Raises what `launch` and `evaluate_run` raise.
    """
    short = shortened(resolved)
    run = run_folder(short.config)
    remove(run)
    launch(short, "auto", console)
    return run, evaluate_run(load(run.path), "val")


def shortened(resolved: Resolved[RunConfig]) -> Resolved[RunConfig]:
    """Return the experiment with few updates and rows, no tracker, and a run's name of its own."""
    config = resolved.config
    stages = config.resolved_stages()
    rows = NUM_UPDATES * max(s.training.batch_size * s.training.accumulate_grad_batches for s in stages)
    values: dict[str, Any] = {f"training.{key}": value for key, value in _SHORT.items()}
    values |= {
        "run.name": f"{config.run_name}{SUFFIX}",
        "data.limit_samples": min(rows, config.data.limit_samples or rows),
        "checkpoints.save_every_n_steps": None,
        "logging.log_every_n_steps": 1,
        "logging.wandb.enabled": False,
        "logging.mlflow.enabled": False,
    }
    for stage in stages if config.stages else ():
        place, entry = f"stages.{stage.entry}", config.stages[stage.entry]
        values |= {f"{place}.{key}": _SHORT[key] for key in _SHORT if key in entry.model_fields_set}
        if "limit_samples" in entry.model_dump().get("data", {}):
            limit = stage.config.data.limit_samples or rows
            values[f"{place}.data.limit_samples"] = min(rows, limit)
    return resolved.with_values(values, "--fast-dev-run")


def remove(run: RunFolder) -> None:
    """Delete the folder of an earlier fast run. Raises InputError when it is anything else."""
    path: Path = run.path
    if not path.exists():
        return
    if not path.name.endswith(SUFFIX) or not (run.config_file.exists() or not any(path.iterdir())):
        raise InputError(f"{path} is no fast run's folder, so it is not made anew; move it, or set run.name=")
    shutil.rmtree(path)
