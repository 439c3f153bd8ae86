"""Rows that become one, as a task's `merge` says: the shards that were written are read and written anew.

Rows that belong together may lie anywhere in the raw files (the repeats of a stimulus in several sessions of
a compressed series), so they are decoded in the files' order first, and merged out of the memory maps.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from voxray.config.errors import InputError
from voxray.core.prepared_rows import Merge
from voxray.core.schema import SPLITS, Schema
from voxray.data.manifest import INDEX_FOLDER, SHARD_FOLDER, ShardInfo
from voxray.data.prepared_rows import ShardRows
from voxray.data.shard_tasks import Progress, run_shard_tasks
from voxray.data.shards import row_bytes, write_shard
from voxray.data.statistics import Sums, add, row_sums

UNMERGED = "unmerged"

_SHARD = TypeAdapter(ShardInfo)


@dataclass(frozen=True)
class Merged:
    """What a dataset's manifest says of its shards after rows merged."""

    schema: Schema
    shards: tuple[ShardInfo, ...]
    sums: Sums


@dataclass(frozen=True)
class _Job:
    """What the tasks need. `rows` are, per shard, a reference to lists of numbers: the rows of each row."""

    merge: Merge
    largest: int
    schema: Schema
    folder: str
    names: tuple[str, ...]  # columns of the rows that merge
    unmerged: dict[str, tuple[ShardInfo, ...]]  # of each split
    files: list[tuple[str, str]]  # name and split
    rows: list[Any]


def merge_shards(
    merge: Merge,
    folder: Path,
    schema: Schema,
    shards: Sequence[ShardInfo],
    shard_mb: float,
    on_progress: Progress | None = None,
) -> Merged:
    """Write the shards in `folder` anew with merged rows, at most `shard_mb` each. Ray is connected.

    Rows keep the order of their first. Raises OSError when `folder` cannot be written.
    """
    import ray

    for name in (SHARD_FOLDER, INDEX_FOLDER):
        (folder / UNMERGED).mkdir(exist_ok=True)
        (folder / name).rename(folder / UNMERGED / name)
    (folder / SHARD_FOLDER).mkdir()
    unmerged = {split: tuple(shard for shard in shards if shard.split == split) for split in SPLITS}
    groups = {split: _groups(merge, folder, infos) for split, infos in unmerged.items() if infos}
    largest = max(len(rows) for of_split in groups.values() for rows in of_split)
    merged = replace(schema, columns=merge.columns(schema.columns, largest))
    rows_per_shard = max(1, int(shard_mb * 1e6) // row_bytes(merged))
    files: list[tuple[str, str]] = []
    rows: list[Any] = []
    for split, of_split in groups.items():
        for start in range(0, len(of_split), rows_per_shard):
            files.append((f"{split}-{start // rows_per_shard:05d}.arrow", split))
            rows.append(ray.put(of_split[start : start + rows_per_shard]))
    job = _Job(merge, largest, merged, str(folder), tuple(schema.columns), unmerged, files, rows)
    results = run_shard_tasks(partial(write_merged_shard, job=job), len(files), on_progress)
    sums: Sums = {}
    for result in results:
        sums = add(sums, result["sums"]) if result["sums"] else sums
    infos = tuple(_SHARD.validate_python(result["shard"]) for result in results)
    return Merged(merged, infos, sums)


def _groups(merge: Merge, folder: Path, shards: Sequence[ShardInfo]) -> list[list[int]]:
    """Return the numbers of the rows that become one, for each row that there will be."""
    rows = ShardRows(folder / UNMERGED, shards)
    keys = zip(*(rows.column(name).tolist() for name in merge.key), strict=True)
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def write_merged_shard(row: dict[str, Any], job: _Job) -> dict[str, Any]:
    """Merge the rows of shard number `row["id"]` and write it, in a Ray Data task; see `run_shard_tasks`."""
    import ray

    file, split = job.files[row["id"]]
    made = _MergedRows(job, split)
    try:
        groups = ray.get(job.rows[row["id"]])
        path = Path(job.folder, SHARD_FOLDER, file)
        info = write_shard(path, made.rows(groups), job.schema, split)
        assert info is not None, "a shard of merged rows has rows"
        result = {"shard": asdict(info), "sums": made.sums}
    except OSError as error:
        result = {"failure": [error.errno, error.strerror]}
    except InputError as error:
        result = {"problems": error.problems}
    return {"id": row["id"], "result": json.dumps(result)}


class _MergedRows:
    """Merges group after group; keeps the sums of training rows."""

    def __init__(self, job: _Job, split: str) -> None:
        self.sums: Sums = {}
        self._job, self._is_train = job, split == "train"
        self._rows = ShardRows(Path(job.folder, UNMERGED), job.unmerged[split])

    def rows(self, groups: Sequence[Sequence[int]]) -> Iterator[Mapping[str, Any]]:
        for numbers in groups:
            columns = self._rows.take(np.asarray(numbers), self._job.names)
            made = self._job.merge.function(columns, self._job.largest)
            if self._is_train:
                self.sums = add(self.sums, row_sums(made, self._job.schema))
            yield made
