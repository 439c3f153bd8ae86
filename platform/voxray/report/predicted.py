"""The page of `voxray predict --images`: the task's own figures of what it predicted."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from voxray.config.errors import InputError
from voxray.core.figures import RunView
from voxray.core.registry import figures_module
from voxray.data.store import Store
from voxray.report.html import write_report
from voxray.report.page import Block, Card, Part, Section, Text, number
from voxray.report.read import read_predictions_file
from voxray.report.rows import open_rows


def require_figures(task: str, dataset: Store) -> ModuleType:
    """Return the task's figures. Raises InputError for a task without, and for a remote dataset."""
    module = figures_module(task)
    if module is None:
        raise InputError(f"task '{task}' does not offer figures of predictions; leave --images out")
    if not dataset.is_local:
        raise InputError(
            f"--images reads rows from a folder, and '{dataset.location}' is remote; leave it out"
        )
    return module


def write_images_page(
    out: Path, config: Mapping[str, Any], predictions: Path, dataset: Path, split: str, checkpoint: str
) -> None:
    """Write one HTML page with the figures of the Parquet file `predictions`, made from `dataset`'s rows.

    Raises InputError as `require_figures` does, and for predictions that are not scores and labels.
    """
    module = require_figures(str(config["task"]), Store.of(dataset))
    given = read_predictions_file(predictions, f"voxray predict RUN {predictions}")
    view = RunView(out.parent, config, split, {}, given, open_rows(dataset, split))
    nothing = Text("The task draws nothing for these rows; most of its figures need known labels.")
    blocks: list[Block] = [*module.figures(view)] or [nothing]
    cards = (
        Card("rows", number(len(given.sample_id)), f"split {split} of {dataset}"),
        Card("checkpoint", checkpoint),
    )
    part = Part(
        kind="run",
        name=predictions.name,
        task=str(config["task"]),
        folder=str(predictions),
        status="predicted",
        tone="plain",
        about={},
        tags=(),
        cards=cards,
        sections=[Section("Predictions", blocks)],
    )
    write_report(out, [part])
