"""A finished run, read back: its model, its task, its evaluation on a split. Needs no Ray."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.evaluation import Evaluation
from voxray.core.registry import config_class, task_class
from voxray.core.run_config import RunConfig
from voxray.core.task import Task
from voxray.data.dataset import dataset_path
from voxray.data.local import LocalStream
from voxray.data.manifest import load_manifest
from voxray.data.source import batch_rules, open_source
from voxray.train import checkpoint
from voxray.train.evaluate import evaluate_split
from voxray.train.run_folder import RunFolder, plain


@dataclass(frozen=True)
class Trained:
    """A run's best model in evaluation mode, with the task and the data it was trained on."""

    run: RunFolder
    config: RunConfig
    task: Task
    model: nn.Module
    source: LocalStream
    checkpoint: Path


def load(run_dir: Path) -> Trained:
    """Load the best checkpoint of a run (the newest where no best was kept).

    Raises InputError when the folder is no run or holds no checkpoint, RunError when the checkpoint is
    damaged.
    """
    run = RunFolder(run_dir)
    values = run.config()
    config = config_class(values["task"]).model_validate(values)
    chosen = checkpoint.best(run.checkpoints) or checkpoint.newest(run.checkpoints, print)
    if chosen is None:
        raise InputError(f"{run_dir} holds no checkpoint; train it first with `voxray train`")
    dataset = dataset_path(config)
    manifest = load_manifest(dataset)
    task = task_class(config.task)(config, manifest.statistics, manifest.schema)
    source = open_source(dataset, config.data, stages=task.read_stages())
    model = task.build_model()
    weights, _ = checkpoint.load(chosen)
    model.load_state_dict(weights)
    return Trained(run, config, task, model.eval(), source, chosen)


def evaluate_run(trained: Trained, split: str, with_floor: bool) -> dict[str, Any]:
    """Evaluate a split with 95 % intervals by group; write evaluation_<split>.json and
    predictions_<split>.parquet.

    `with_floor` fits the task's linear floor on the training split and scores it on the same rows.
    """
    task, source = trained.task, trained.source
    if source.num_rows(split) == 0:
        raise InputError(
            f"the dataset has no rows in split '{split}'; it has {', '.join(source.manifest.splits)}"
        )
    stage = trained.config.resolved_stages()[-1]
    merged = evaluate_split(task, trained.model, source, split, stage, torch.device("cpu"))
    assert merged.rows is not None
    summary = task.summarize(merged)
    intervals = task.intervals(merged, seed=trained.config.training.seed)
    table = _with_intervals(task.table(merged, summary), intervals)
    floor = _floor(trained, split, merged) if with_floor else None
    if floor is not None:
        for row, reference in zip(table, task.table(floor, task.summarize(floor)), strict=True):
            row["floor"] = reference["auroc"] if "auroc" in reference else reference["value"]
    result = {
        "split": split,
        "dataset": source.store.location,
        "checkpoint": trained.checkpoint.name,
        "num_rows": len(merged.rows.sample_id),
        "num_groups": len(set(merged.rows.group_id)),
        "metrics": summary,
        "intervals": {name: list(bounds[0]) for name, bounds in intervals.items() if len(bounds) == 1},
        "table": table,
        # The floor gives scores only: its loss is not the model's, so just the metrics of rows are kept.
        "floor": None if floor is None else {name: task.summarize(floor)[name] for name in intervals},
    }
    _write(trained, split, merged, plain(result))
    return result


def _with_intervals(
    table: list[dict[str, Any]], intervals: dict[str, list[tuple[float, float]]]
) -> list[dict[str, Any]]:
    """Put `low` and `high` beside each row of the table, where a per-row interval was computed."""
    per_row = next((bounds for bounds in intervals.values() if len(bounds) == len(table)), None)
    if per_row is None:
        return table
    return [{**row, "low": low, "high": high} for row, (low, high) in zip(table, per_row, strict=True)]


def _floor(trained: Trained, split: str, merged: Evaluation) -> Evaluation:
    """Return the evaluation that the linear floor's scores get on the same rows."""
    assert merged.rows is not None
    rules = trained.config.data
    held_out = trained.source.read_split(split, batch_rules(rules, training=False))
    train = trained.source.read_split("train", batch_rules(rules, training=False))
    scores = trained.task.floor(train, held_out)
    order = np.argsort(held_out["sample_id"].astype(str), kind="stable")
    assert [str(name) for name in held_out["sample_id"][order]] == merged.rows.sample_id
    rows = type(merged.rows)(
        merged.rows.sample_id, merged.rows.group_id, {**merged.rows.columns, "scores": scores[order]}
    )
    return Evaluation(merged.sums, rows)


def _write(trained: Trained, split: str, merged: Evaluation, result: dict[str, Any]) -> None:
    assert merged.rows is not None
    (trained.run.path / f"evaluation_{split}.json").write_text(json.dumps(result, indent=1))
    columns = {name: list(values) for name, values in trained.task.predictions(merged).items()}
    frame = pd.DataFrame({"sample_id": merged.rows.sample_id, "group_id": merged.rows.group_id, **columns})
    frame.to_parquet(trained.run.path / f"predictions_{split}.parquet", index=False)
