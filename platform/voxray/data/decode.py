"""What one Ray Data task does when raw files are prepared: decode the rows of one shard and write it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.registry import config_class, task_data
from voxray.core.schema import Schema
from voxray.core.task import BadRowError, MapStage, RawRow
from voxray.data.raw import row_stages
from voxray.data.shards import write_shard
from voxray.data.statistics import Sums, add, row_sums


@dataclass(frozen=True)
class ShardJob:
    """What the tasks need: the task by name, and each shard's file, split and reference to its raw rows.

    `added` are stages that run after the task's own.
    """

    task: str
    config: dict[str, Any]
    schema: Schema
    folder: str
    shards: list[tuple[str, str, Any]]
    added: tuple[MapStage, ...] = ()


def write_planned_shard(row: dict[str, Any], job: ShardJob) -> dict[str, Any]:
    """Decode and write shard number `row["id"]`, in a Ray Data task.

    Returns the number and, as JSON, `shard` (a ShardInfo, None when all its rows were bad), `bad` (index,
    reason), `sums` of the training statistics, and `failure`: errno and message when the file cannot be
    written. Or else `problems` alone, of an InputError that is no single row's.
    """
    import ray

    file, split, reference = job.shards[row["id"]]
    task = task_data(job.task)(config_class(job.task).model_validate(job.config), schema=job.schema)
    made = _DecodedRows([*row_stages(task), *job.added], job.schema, with_sums=split == "train")
    try:
        shard = write_shard(Path(job.folder, file), made.rows(ray.get(reference)), job.schema, split)
    except OSError as error:
        return {"id": row["id"], "result": json.dumps({"failure": [error.errno, error.strerror]})}
    except InputError as error:
        return {"id": row["id"], "result": json.dumps({"problems": error.problems})}
    result = {"shard": shard and asdict(shard), "bad": made.bad, "sums": made.sums, "failure": None}
    return {"id": row["id"], "result": json.dumps(result)}


class _DecodedRows:
    """Decodes raw rows one by one; keeps the bad ones' indices with the reasons, and the good ones' sums."""

    def __init__(self, stages: Sequence[MapStage], schema: Schema, with_sums: bool) -> None:
        self.bad: list[tuple[int, str]] = []
        self.sums: Sums = {}
        self._stages, self._schema, self._with_sums = stages, schema, with_sums

    def rows(self, raw: Sequence[RawRow]) -> Iterator[RawRow]:
        for index, row in enumerate(raw):
            try:
                made = apply_stages(self._stages, row)
                _check_row(made, self._schema)
            except BadRowError as error:
                self.bad.append((index, str(error)))
                continue
            if self._with_sums:
                self.sums = add(self.sums, row_sums(made, self._schema))
            yield made


def apply_stages(stages: Sequence[MapStage], row: RawRow) -> RawRow:
    """Return the row after all map stages. Raises BadRowError for one that cannot be used."""
    for stage in stages:
        row = stage.function(row)
    return row


def _check_row(row: Mapping[str, Any], schema: Schema) -> None:
    for name, column in schema.columns.items():
        if not column.is_tensor:
            continue
        found, wanted = np.shape(row[name]), column.shape
        if column.ragged and len(found) == len(wanted):
            found, wanted = found[1:], wanted[1:]
        if found != wanted:
            texts = ["×".join(map(str, shape)) or "a scalar" for shape in (np.shape(row[name]), column.shape)]
            raise BadRowError(f"column '{name}' has the shape {texts[0]}, the dataset's is {texts[1]}")
