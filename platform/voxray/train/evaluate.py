"""A pass over one split: what the loop does after each epoch and `voxray evaluate` does afterwards."""

from collections.abc import Mapping

import torch
from torch import nn

from voxray.core.batch import BatchSource, EpochRequest
from voxray.core.evaluation import Evaluation, merge
from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.data.source import batch_rules
from voxray.train.device import on_device


@torch.inference_mode()
def evaluate_split(
    task: Task, model: nn.Module, source: BatchSource, split: str, stage: Stage, device: torch.device
) -> Evaluation:
    """Return the merged evaluation of every row of `split`, the same on every worker. No augmentation."""
    model.eval()
    rules = batch_rules(task.config.data, training=False)
    request = EpochRequest(split, stage.training.batch_size, seed=0, shuffle=False, rules=rules)
    collated = (task.collate(columns) for columns in source.batches(request))
    return merge([task.evaluate(model, batch, stage) for batch in on_device(collated, device)])


def summarize_split(
    task: Task, model: nn.Module, source: BatchSource, split: str, stage: Stage, device: torch.device
) -> dict[str, float | list[float]]:
    """Return the split's metrics, named `split/metric`."""
    merged = evaluate_split(task, model, source, split, stage, device)
    return {f"{split}/{name}": value for name, value in task.summarize(merged).items()}


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
