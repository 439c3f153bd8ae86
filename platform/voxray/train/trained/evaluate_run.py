"""A trained model on a held-out split: metrics with intervals by group, a linear floor, and their files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.evaluation import Evaluation
from voxray.data.local import LocalStream
from voxray.data.source import batch_rules
from voxray.train.evaluate import evaluate_split
from voxray.train.run_folder import plain
from voxray.train.trained.load import Trained
from voxray.train.trained.output import refuse_existing, whole
from voxray.train.trained.predictions import about_predictions, predictions_table, write_predictions


def evaluate_run(
    trained: Trained,
    split: str,
    with_floor: bool = False,
    data: str | Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a split with 95 % intervals by group and return the summary.

    `with_floor` fits the task's linear floor on the training split of the run's dataset and scores it on the
    same rows. evaluation_<split>.json, predictions_<split>.parquet and what the task adds go into `out`,
    where the two must not be yet; by default into the run, anew; nowhere for another dataset or another
    checkpoint than the run's best.
    """
    if out is not None:
        for file in result_files(out, split):
            refuse_existing(file)
    source = trained.rows(split, data)
    task = trained.task
    num_rows = source.num_chosen(split, batch_rules(task.config.data, training=False))
    if num_rows == 0:
        raise InputError(f"data.filter leaves no rows of split '{split}' in {source.store.location}")
    merged = evaluate_split(task, trained.model, source, split, trained.stage, trained.device)
    summary = task.summarize(merged)
    intervals = task.intervals(merged, seed=trained.config.training.seed)
    table = _with_intervals(task.table(merged, summary), intervals)
    floor = _floor(trained, source, split, merged) if with_floor else None
    if floor is not None:
        references = task.table(floor, task.summarize(floor))
        table = [_with_floor(row, other) for row, other in zip(table, references, strict=True)]
    result = {
        "split": split,
        "dataset": source.store.location,
        "checkpoint": trained.checkpoint.name,
        "averaged_weights": trained.is_averaged,
        "num_rows": num_rows if merged.rows is None else len(merged.rows.sample_id),
        "num_groups": None if merged.rows is None else len(set(merged.rows.group_id)),
        "metrics": summary,
        "intervals": {name: list(bounds[0]) for name, bounds in intervals.items() if len(bounds) == 1},
        "table": table,
        # The floor gives scores only: its loss is not the model's, so just the metrics of rows are kept.
        "floor": None if floor is None else {name: task.summarize(floor)[name] for name in intervals},
    }
    folder = out or results_folder(trained, data)
    if folder is not None:
        _write(trained, folder, split, merged, plain(result))
    return result


def results_folder(trained: Trained, data: str | Path | None) -> Path | None:
    """Return where results belong by default: a run keeps those of its best on its own dataset."""
    return trained.run if data is None else None


def result_files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return where a split's predictions and its evaluation are written."""
    return folder / f"predictions_{split}.parquet", folder / f"evaluation_{split}.json"


def _with_intervals(
    table: list[dict[str, Any]], intervals: dict[str, list[tuple[float, float]]]
) -> list[dict[str, Any]]:
    """Put `low` and `high` beside the column of the first metric that has an interval for each row; at the
    end of the row where no column has the metric's name. In a table of one metric a row: beside each value.
    """
    if intervals and all("metric" in row for row in table):
        ends = [intervals.get(row["metric"], [(None, None)])[0] for row in table]
        return [
            _after(row, "value", {"low": low, "high": high})
            for row, (low, high) in zip(table, ends, strict=True)
        ]
    per_row = [(name, bounds) for name, bounds in intervals.items() if len(bounds) == len(table)]
    if not per_row:
        return table
    name, bounds = per_row[0]
    column = name.removesuffix("_per_class")
    return [
        _after(row, column, {"low": low, "high": high})
        for row, (low, high) in zip(table, bounds, strict=True)
    ]


def _with_floor(row: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Put the linear floor's value of a row's metric beside it, after its interval; the floor gives scores,
    so what has no interval (loss, counts) is not its own.
    """
    metric = "auroc" if "auroc" in reference else "value"
    if "metric" in row and row.get("low") is None:
        return _after(row, "high", {"floor": None})
    return _after(row, "high" if "high" in row else metric, {"floor": reference[metric]})


def _after(row: dict[str, Any], key: str, more: dict[str, Any]) -> dict[str, Any]:
    """Return the row with more columns right after `key`, at its end where it has no such column."""
    keys = list(row)
    place = keys.index(key) + 1 if key in row else len(keys)
    return {**{name: row[name] for name in keys[:place]}, **more, **row}


def _floor(trained: Trained, source: LocalStream, split: str, merged: Evaluation) -> Evaluation:
    """Return the evaluation that the linear floor's scores get on the same rows."""
    if merged.rows is None:
        raise InputError(
            f"task '{trained.config.task}' does not offer a linear floor: it evaluates sums alone"
        )
    rules = batch_rules(trained.task.config.data, training=False)
    held_out = source.read_split(split, rules)
    train = trained.rows("train").read_split("train", rules)
    scores = trained.task.floor(train, held_out)
    order = np.argsort(held_out["sample_id"].astype(str), kind="stable")
    assert [str(name) for name in held_out["sample_id"][order]] == merged.rows.sample_id
    rows = type(merged.rows)(
        merged.rows.sample_id,
        merged.rows.group_id,
        {**merged.rows.columns, trained.task.SCORES: scores[order]},
    )
    return Evaluation(merged.sums, rows)


def _write(trained: Trained, folder: Path, split: str, merged: Evaluation, result: dict[str, Any]) -> None:
    """Write the files, the evaluation last, as it stands for all. Without rows there are no predictions."""
    predictions, evaluation = result_files(folder, split)
    if merged.rows is not None:
        about = about_predictions(trained, result["dataset"], split)
        write_predictions(predictions, iter([predictions_table(trained.task, merged)]), about)
    further = trained.task.evaluation_files(trained.model, merged, split)
    with whole(evaluation) as partial:
        for name, content in further.items():
            partial.with_name(name).write_bytes(content)
        partial.write_text(json.dumps(result, indent=1))
