"""One training process, and the only place that talks to Ray Train from inside a worker."""

import json
from pathlib import Path
from typing import Any

import torch

from voxray.config.errors import RunError
from voxray.core import collectives
from voxray.core.registry import config_class, task_class
from voxray.core.run_config import RunConfig
from voxray.data.dataset import dataset_path
from voxray.data.manifest import load_manifest
from voxray.data.source import batch_rules, open_source
from voxray.train.loop import Report, fit
from voxray.train.run_folder import RunFolder


def train_here(config: RunConfig, run_dir: Path, report: Report) -> None:
    """Train in this process, which is connected to Ray: alone (a trial's actor) or as one worker of several.

    `report` is called once per epoch with the epoch's numbers.
    """
    device = _device()
    if device.type == "cpu":
        torch.set_num_threads(config.scale.threads_per_worker)
    dataset = dataset_path(config)
    manifest = load_manifest(dataset)
    task = task_class(config.task)(config, manifest.statistics, manifest.schema)
    run = RunFolder(run_dir)
    source = open_source(
        dataset,
        config.data,
        collectives.rank(),
        collectives.world_size(),
        task.read_stages(),
        on_fault=lambda text: run.log({"kind": "note", "rank": collectives.rank(), "text": text}),
    )
    if source.num_chosen("train", batch_rules(config.data, training=True)) == 0:
        raise RunError(f"dataset {dataset} has no training rows, or data.filter leaves none")
    fit(task, source, config, run, report, device)


def run_worker(payload: dict[str, Any]) -> None:
    """Ray Train's entry: rebuild the config from JSON, train, and tell Ray Train each epoch's numbers."""
    import ray.train

    values = json.loads(payload["config"])
    config = config_class(values["task"]).model_validate(values)
    train_here(config, Path(payload["run_dir"]), lambda metrics: ray.train.report(metrics))


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device() if collectives.is_distributed() else torch.device("cuda", 0)
