"""Where a dataset's rows come from: the task's own reader of raw files, or a flat dataset of others."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from voxray.core.task import BadRow, MapStage, RawRow, TaskData
from voxray.data.formats.flat.rows import flat_rows, read_flat_row


def raw_rows(task: TaskData, source: Path) -> Iterator[RawRow | BadRow]:
    """Yield the raw rows of `source` in the format that `data.prepare.format` names. Raises InputError."""
    prepare = task.config.data.prepare
    if _is_raw(task):
        return task.read_raw(source)
    return flat_rows(prepare.format, source, task.dataset_schema, prepare.columns)


def row_stages(task: TaskData) -> list[MapStage]:
    """Return what turns such a raw row into a row of the schema, in a Ray Data task."""
    if _is_raw(task):
        return task.map_stages()
    return [MapStage("read", partial(read_flat_row, schema=task.dataset_schema))]


def has_networks(task: TaskData) -> bool:
    """Whether frozen networks make columns: a flat row is whole, with their outputs in it."""
    return _is_raw(task) and bool(task.embedders())


def _is_raw(task: TaskData) -> bool:
    return task.config.data.prepare.format == "raw"
