"""A run's evaluated splits: metrics beside their intervals and the linear floor, and the task's figures."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from voxray.config.errors import InputError
from voxray.core.figures import RunView
from voxray.core.registry import figures_module
from voxray.core.spellings import monitor_mode
from voxray.report.page import Block, Card, Section, Table, Text, decimals, interval, number
from voxray.report.read import RunFiles, predictions_file, read_columns, read_predictions
from voxray.report.rows import open_rows

Numbers = dict[str, Any]


def evaluation_sections(run: RunFiles) -> list[Section]:
    """Return a section per evaluated split; without one, the command that evaluates."""
    if not run.evaluations:
        words = "This run has not been evaluated. Metrics with intervals, the floor and samples come with:"
        return [Section("Evaluation", [Text(words, f"{_evaluate(run)} --floor")])]
    load = cache(lambda: _load(run.folder))
    return [Section(f"Evaluation on {split}", _blocks(run, split, load)) for split in run.evaluations]


def _blocks(run: RunFiles, split: str, load: Callable[[], Any]) -> list[Block]:
    evaluation = run.evaluations[split]
    table = evaluation.get("table")
    blocks: list[Block] = [_cards(evaluation), *_against_floor(run, split)]
    blocks += [_result_table(table)] if table else []
    module = figures_module(str(run.config.get("task", "")))
    return blocks if module is None else [*blocks, *_task_figures(module, run, split, load)]


def _task_figures(module: ModuleType, run: RunFiles, split: str, load: Callable[[], Any]) -> list[Block]:
    """Return the task's own figures; where its rows cannot be shown, say why."""
    evaluation = run.evaluations[split]
    own = str((run.config.get("data") or {}).get("path") or "")
    predictions, file = read_predictions(run.folder, split), predictions_file(run.folder, split)
    view = RunView(run.folder, run.config, split, evaluation, predictions, load=load)
    if file is not None:
        view = replace(view, columns=lambda: read_columns(file, _evaluate(run)))
    else:
        words = f"No predictions_{split}.parquet, so no samples are shown. It is written by:"
        return [*module.figures(view), Text(words, f"{_evaluate(run)} --split {split}")]
    train = run.dataset.location if run.dataset is not None else own
    view = replace(view, open_train=lambda: open_rows(Path(train), "train"))
    dataset = str(evaluation.get("dataset") or own)
    try:
        return module.figures(replace(view, take=open_rows(Path(dataset), split)))
    except InputError as error:
        return [*module.figures(view), Text(f"No samples are shown: {error}")]


def _load(run: Path) -> Any:
    """Return the trained run on the CPU; a report that never asks does not import torch."""
    from voxray.train.trained.load import load

    return load(run, "cpu")


def _cards(evaluation: Numbers) -> tuple[Card, ...]:
    intervals = evaluation.get("intervals") or {}
    metrics = [
        Card(name.replace("num_", "number "), number(value), _interval(intervals.get(name)))
        for name, value in _single(evaluation.get("metrics")).items()
    ]
    floor = [Card(f"{name} of the linear floor", number(value)) for name, value in _floor(evaluation).items()]
    sizes = [
        Card(key.removeprefix("num_"), number(evaluation[key]))
        for key in ("num_rows", "num_groups")
        if key in evaluation
    ]
    return (*metrics, *floor, *sizes, Card("checkpoint", str(evaluation.get("checkpoint", "–"))))


def _single(metrics: Any) -> Numbers:
    """Return the metrics that are one number each."""
    return {name: value for name, value in (metrics or {}).items() if not isinstance(value, list)}


def _floor(evaluation: Numbers) -> Numbers:
    """Return the floor's scores, without loss and counts: the floor ranks rows and has no loss."""
    scores = _single(evaluation.get("floor"))
    return {name: value for name, value in scores.items() if name != "loss" and not name.startswith("num_")}


def _interval(ends: Any) -> str:
    """Return the interval of a single number; a list's intervals, one per entry, stand in the table."""
    flat = isinstance(ends, list) and len(ends) == 2 and not any(isinstance(end, list) for end in ends)
    return f"95 % interval {interval(*ends)}" if flat else ""


def _against_floor(run: RunFiles, split: str) -> list[Block]:
    """Say in words on which side of the linear floor the model is; without one, how to get it."""
    evaluation = run.evaluations[split]
    metrics, floor = evaluation.get("metrics") or {}, _floor(evaluation)
    if not floor:
        words = "No linear floor was fitted for this split. It comes with:"
        return [Text(words, f"{_evaluate(run)} --split {split} --floor")]
    gaps = {
        name: metrics[name] - value
        for name, value in floor.items()
        if value is not None and metrics.get(name) is not None
    }
    return [
        Text(
            f"{name}: the model is {decimals(abs(gap))} {'above' if gap > 0 else 'below'} the linear floor.",
            tone="good" if (gap > 0) == (monitor_mode(name) == "max") else "bad",
        )
        for name, gap in gaps.items()
    ]


def _result_table(rows: list[Numbers]) -> Table:
    """Return the evaluation's table; `low` and `high` become one column."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    names = {"auroc": "AUROC", "ap": "AP", "low": "95 % interval", "floor": "linear floor"}
    shown = [key for key in keys if not (key == "high" and "low" in keys)]

    def cell(row: Numbers, key: str) -> Any:
        if key != "low" or "high" not in keys:
            return row.get(key)
        return interval(row.get("low"), row.get("high"))

    return Table(
        tuple(names.get(key, key) for key in shown),
        [tuple(cell(row, key) for key in shown) for row in rows],
        caption="Intervals by resampling groups (patients, subjects), not rows. A dash: not defined here.",
    )


def _evaluate(run: RunFiles) -> str:
    return f"voxray evaluate {shlex.quote(str(run.folder))}"
