"""Predictions as Parquet: `sample_id`, `group_id` and the task's columns, streamed in row groups."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from voxray.config.errors import InputError, RunError
from voxray.core.batch import BatchRules, EpochRequest
from voxray.core.evaluation import Evaluation
from voxray.core.task import Task
from voxray.data.local import LocalStream
from voxray.train.device import on_device
from voxray.train.trained.load import Trained
from voxray.train.trained.output import refuse_existing, whole

ROW_GROUP_BYTES = 32 << 20  # what waits in memory until it is written


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote."""

    out: Path
    num_rows: int
    dataset: str


def predict(trained: Trained, out: Path, split: str, data: str | Path | None = None) -> Predicted:
    """Write the predictions for every row of a split to the Parquet file `out`, in the dataset's order.

    `data.filter` and `data.limit_samples` of the run leave no row out here. Raises InputError where `out`
    exists or cannot be written, and as `Trained.rows` does.
    """
    refuse_existing(out)
    source = trained.rows(split, data)
    about = {
        "voxray.task": trained.config.task,
        "voxray.checkpoint": trained.checkpoint.name,
        "voxray.dataset": source.store.location,
        "voxray.split": split,
    }
    num_rows = write_predictions(out, _tables(trained, source, split), about)
    return Predicted(out, num_rows, source.store.location)


@torch.inference_mode()
def _tables(trained: Trained, source: LocalStream, split: str) -> Iterator[pa.Table]:
    task, model = trained.task, trained.model.eval()
    rules = BatchRules(bucket_by=task.config.data.bucket_by)
    request = EpochRequest(split, trained.stage.training.batch_size, seed=0, shuffle=False, rules=rules)
    collated = (task.collate(columns) for columns in source.batches(request))
    for batch in on_device(collated, trained.device):
        yield predictions_table(task, task.evaluate(model, batch, trained.stage))


def predictions_table(task: Task, evaluation: Evaluation) -> pa.Table:
    """Return one row per evaluated row. Raises InputError for a task that evaluates sums alone."""
    rows = evaluation.rows
    if rows is None:
        raise InputError(f"task '{task.config.task}' does not offer predictions of single rows")
    ids = {
        "sample_id": pa.array(rows.sample_id, pa.string()),
        "group_id": pa.array(rows.group_id, pa.string()),
    }
    return pa.table({**ids, **{name: arrow_column(v) for name, v in task.predictions(evaluation).items()}})


def arrow_column(values: np.ndarray) -> pa.Array:
    """Return an array [N, …] as N values or nested lists; an object array holds text, or a list per row."""
    if values.dtype == object or values.ndim == 1:
        return pa.array(list(values) if values.dtype == object else values)
    length = values.shape[1]
    inner = arrow_column(values.reshape(len(values) * length, *values.shape[2:]))
    ends = np.arange(len(values) + 1, dtype=np.int32) * length
    return pa.ListArray.from_arrays(pa.array(ends), inner)


def write_predictions(out: Path, tables: Iterator[pa.Table], about: dict[str, str] | None = None) -> int:
    """Write tables of the same columns as one Parquet file, whole or not at all; return the rows.

    What waits to be written stays below ROW_GROUP_BYTES and one table. `about` goes into the file's
    metadata. Raises RunError when a table's columns are not those of the first one, or there is none.
    """
    groups = _row_groups(tables)
    first = next(groups, None)
    if first is None:
        raise RunError(f"there are no rows to write to {out}")
    schema = first.schema.with_metadata(about)
    num_rows = 0
    with whole(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for group in itertools.chain([first], groups):
            num_rows += group.num_rows
            writer.write_table(_cast(group, schema))
    return num_rows


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= ROW_GROUP_BYTES:
            yield _joined(waiting)
            waiting, num_bytes = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([_cast(table, tables[0].schema) for table in tables])


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise RunError(
            f"Task.predictions gave other columns for a later batch: {error}; they depend on each row alone"
        ) from error
