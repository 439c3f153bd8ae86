"""Predictions as Parquet, streamed in row groups, or as a `.pt` file of tensors and lists of text.

Both hold `sample_id`, `group_id` and the task's columns, a row per sample, and the names of the labels.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
TENSOR_SUFFIXES = (".pt", ".pth")
_ABOUT = ("voxray.task", "voxray.checkpoint", "voxray.dataset", "voxray.split")


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote."""

    out: Path
    num_rows: int
    dataset: str


def predict(trained: Trained, out: Path, split: str, data: str | Path | None = None) -> Predicted:
    """Write the predictions for every row of a split to `out`, in the dataset's order: Parquet, or tensors
    where it ends in .pt or .pth, which are gathered in memory first.

    `data.filter` and `data.limit_samples` of the run leave no row out here. Raises InputError where `out`
    exists or cannot be written, and as `Trained.rows` does.
    """
    refuse_existing(out)
    source = trained.rows(split, data)
    about = about_predictions(trained, source.store.location, split)
    tables = _tables(trained, source, split)
    if out.suffix in TENSOR_SUFFIXES:
        with whole(out) as partial:
            parquet = partial.with_name(f"{out.name}.parquet")
            num_rows = write_predictions(parquet, tables, about)
            save_as_tensors(partial, parquet)
            parquet.unlink()
    else:
        num_rows = write_predictions(out, tables, about)
    return Predicted(out, num_rows, source.store.location)


def about_predictions(trained: Trained, dataset: str, split: str) -> dict[str, str]:
    """Return what predictions say of themselves in their file's metadata.

    `voxray.names` is JSON: the names of the entries of those columns that the dataset names (`labels`).
    pandas has it as `DataFrame.attrs["names"]`.
    """
    columns = trained.task.dataset_schema.columns
    names = {name: list(column.names) for name, column in columns.items() if column.names}
    to_pandas = {"index_columns": [], "column_indexes": [], "columns": [], "attributes": {"names": names}}
    return {
        "voxray.task": trained.config.task,
        "voxray.checkpoint": trained.checkpoint.name,
        "voxray.dataset": dataset,
        "voxray.split": split,
        "voxray.names": json.dumps(names),
        "pandas": json.dumps(to_pandas),
    }


def save_as_tensors(out: Path, parquet: Path) -> None:
    """Write what a Parquet file of predictions holds for `torch.load(out, weights_only=True)`.

    A map: a column of numbers is a tensor [N, …], one of text or of ragged lists is a list; `names` and
    `about` are what the file says of itself.
    """
    table = pq.read_table(parquet)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    about = {key.removeprefix("voxray."): value for key, value in metadata.items() if key in _ABOUT}
    torch.save(
        {**_columns(table), "names": json.loads(metadata.get("voxray.names", "{}")), "about": about}, out
    )


def read_columns(parquet: Path) -> dict[str, Any]:
    """Return the columns of a Parquet file that `predict` wrote: tensors [N, …] and lists."""
    return _columns(pq.read_table(parquet))


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: _values(table[name].combine_chunks()) for name in table.column_names}


def _values(column: pa.Array) -> Any:
    """Return a column as a tensor [N, …] where it is numbers or lists of one length, else as a list."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = column.value_lengths().unique().to_pylist()
        inner = _values(column.flatten()) if len(lengths) == 1 else None
        if isinstance(inner, torch.Tensor):
            return inner.reshape(len(column), lengths[0], *inner.shape[1:])
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False)))
    return column.to_pylist()


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
