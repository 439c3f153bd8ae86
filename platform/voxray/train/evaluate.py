"""A pass over one split: what the loop does after each epoch and `voxray evaluate` does afterwards."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from voxray.core.batch import BatchSource, EpochRequest
from voxray.core.evaluation import Evaluation, merge
from voxray.core.run_config import Stage
from voxray.core.task import Task
from voxray.data.source import batch_rules
from voxray.train.device import on_device


@torch.inference_mode()
def evaluate_request(
    task: Task,
    model: nn.Module,
    source: BatchSource,
    request: EpochRequest,
    stage: Stage,
    device: torch.device,
    beat: Callable[[], None] | None = None,
) -> Evaluation:
    """Return the merged evaluation of the rows that are asked for, the same on every worker. No augmentation.

    `beat` is called after each batch.
    """
    model.eval()
    parts: list[Evaluation] = []
    for batch in on_device((task.collate(columns) for columns in source.batches(request)), device):
        parts.append(task.evaluate(model, batch, stage))
        if beat:
            beat()
    return merge(parts)


def evaluate_split(
    task: Task, model: nn.Module, source: BatchSource, split: str, stage: Stage, device: torch.device
) -> Evaluation:
    """Return the merged evaluation of every row of `split` that the stage's filter leaves."""
    rules = batch_rules(stage.config.data, training=False)
    request = EpochRequest(split, stage.training.batch_size, seed=0, shuffle=False, rules=rules)
    return evaluate_request(task, model, source, request, stage, device)


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
