"""Raw files → a dataset: rows are read and split here, decoded and written by Ray Data tasks, a shard each.

Everything is written to a hidden folder beside the final one, the manifest last, and then renamed: the final
name never holds half a dataset. The same raw files and options give byte-identical shards.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from voxray.config.errors import InputError
from voxray.core.schema import BYTES, SPLITS, Column, Schema
from voxray.core.splits import assign_splits
from voxray.core.task import BadRow, BadRowError, MapStage, RawRow, TaskData
from voxray.data.decode import ShardJob, apply_stages, write_planned_shard
from voxray.data.embed import AddedColumns, add_columns
from voxray.data.manifest import (
    INDEX_FOLDER,
    QUARANTINE_NAME,
    SHARD_FOLDER,
    Manifest,
    Recipe,
    ShardInfo,
    Source,
    SplitCounts,
    fsync_folder,
    write_manifest,
)
from voxray.data.merge import UNMERGED, merge_shards
from voxray.data.prepared_rows import ShardRows
from voxray.data.raw import has_networks, raw_rows, row_stages
from voxray.data.room import check_free_space, full_or_unwritable, remove
from voxray.data.shard_tasks import Progress, run_shard_tasks
from voxray.data.shards import row_bytes, value_bytes
from voxray.data.statistics import Sums, add, statistics_of

MAX_BAD_ROWS_SHOWN = 20
SAMPLED_ROWS = 16  # decoded to learn how large rows are, where they differ
_TABLE_SUFFIXES = (
    ".csv",
    ".tsv",
    ".txt",
    ".json",
)  # their bytes, not only their sizes, go into the fingerprint

_SHARD = TypeAdapter(ShardInfo)


@dataclass(frozen=True)
class PrepareReport:
    """What was made: the dataset's folder, its manifest, and the rows that were set aside."""

    out: Path
    manifest: Manifest
    quarantined: tuple[BadRow, ...]


@dataclass(frozen=True)
class _PlannedShard:
    """Rows, as indices into all raw rows, that go to one shard."""

    file: str
    split: str
    rows: list[int]


@dataclass(frozen=True)
class _Written:
    """What was written: the shards, the sums of training rows, the task's own statistics of columns, and the
    groups of each split.
    """

    schema: Schema
    shards: tuple[ShardInfo, ...]
    sums: Sums
    groups: dict[str, set[str]]
    statistics: dict[str, dict[str, Any]]


def prepare(
    task: TaskData, source: Path, out: Path, on_progress: Progress | None = None, origin: str = ""
) -> PrepareReport:
    """Make the dataset `out` from the raw files in `source` by `task.config.data.prepare`. Ray is connected.
    `origin` is what the manifest calls the source, where that is a copy.

    Raises InputError when the raw data is wrong (all bad rows are named, unless they are quarantined), `out`
    is already there, a split is empty, or the disk is too small or full. `out` does not exist then.
    """
    source, out = source.absolute(), out.absolute()
    _check_out(source, out)
    rows, bad = _read_rows(task, source)
    _judge(task, bad, rows)
    splits = _split_rows(task, rows, task.schema())
    added = add_columns(task, rows) if has_networks(task) else AddedColumns()
    schema = _resolved_schema(task, rows, added.stages)
    mean_bytes = _mean_row_bytes(task, rows, schema, added.stages)
    shards = _plan_shards(task, splits, mean_bytes)
    num_bytes = len(rows) * mean_bytes * (1 if task.merge() is None else 2)
    check_free_space(out, num_bytes)
    fingerprint = _fingerprint(source)
    folder = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    try:
        (folder / SHARD_FOLDER).mkdir(parents=True)
        results = _write_all(task, schema, folder, shards, rows, added.stages, on_progress)
        bad += _bad_rows(shards, results, rows)
        _judge(task, bad, rows)
        written = _finished(task, folder, _gathered(schema, shards, results, rows), on_progress)
        manifest = _manifest(task, written, Source(origin or str(source), fingerprint), len(bad))
        manifest = replace(manifest, recipe=replace(manifest.recipe, networks=added.networks))
        _check_splits_filled(task, manifest)
        _write_quarantine(folder, bad)
        fsync_folder(folder / SHARD_FOLDER)
        fsync_folder(folder / INDEX_FOLDER)
        write_manifest(folder, manifest)
        folder.rename(out)
    except OSError as error:
        remove(folder)
        raise full_or_unwritable(out, error, num_bytes) from error
    finally:
        remove(folder)
    fsync_folder(out.parent)
    return PrepareReport(out, manifest, tuple(bad))


def leftovers(out: Path) -> list[Path]:
    """Return the hidden folders of attempts at `out` that were killed, or that still run."""
    return sorted(out.absolute().parent.glob(f".{out.name}.partial-*"))


# --- the driver's side: rows, splits, plan
# ------------------------------------------------------------------------


def _check_out(source: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"'{out}' already exists and is not empty; name another folder, or remove it first")
    if out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"'{out}' lies inside the raw folder '{source}'; name a folder outside it")


def _read_rows(task: TaskData, source: Path) -> tuple[list[RawRow], list[BadRow]]:
    """Return the good and the bad rows; a sample id's second row is bad."""
    rows: list[RawRow] = []
    bad: list[BadRow] = []
    first: dict[str, str] = {}
    sample_id = task.dataset_schema.sample_id
    for row in raw_rows(task, source):
        if isinstance(row, BadRow):
            bad.append(row)
        elif (name := row[sample_id]) in first:
            bad.append(
                BadRow(row["origin"], f"'{name}' comes a second time (first in {first[name]}); remove one")
            )
        else:
            first[name] = row["origin"]
            rows.append(row)
    if not rows and not bad:
        raise InputError(f"'{source}' holds not a single row")
    return rows, bad


def _judge(task: TaskData, bad: Sequence[BadRow], rows: Sequence[RawRow]) -> None:
    """Raise InputError that lists the bad rows, unless the policy sets them aside and good ones are left."""
    quarantine = task.config.data.prepare.on_error == "quarantine"
    if not bad or (quarantine and rows):
        return
    lines = [f"{row.origin}: {row.reason}" for row in bad[:MAX_BAD_ROWS_SHOWN]]
    if len(bad) > MAX_BAD_ROWS_SHOWN:
        lines.append(f"and {len(bad) - MAX_BAD_ROWS_SHOWN} more")
    if quarantine:
        lines.append("no row is left to prepare")
    else:
        count = (
            "1 bad row; mend it, or set it"
            if len(bad) == 1
            else f"{len(bad)} bad rows; mend them, or set them"
        )
        lines.append(f"{count} aside with `--on-error quarantine`")
    raise InputError(*lines)


def _bad_rows(
    shards: Sequence[_PlannedShard], results: Sequence[dict[str, Any]], rows: Sequence[RawRow]
) -> list[BadRow]:
    """Return the rows that could not be decoded."""
    return [
        BadRow(rows[shard.rows[index]]["origin"], reason)
        for shard, result in zip(shards, results, strict=True)
        for index, reason in result["bad"]
    ]


def _resolved_schema(task: TaskData, rows: Sequence[RawRow], added: Sequence[MapStage]) -> Schema:
    """Return the schema with the sizes that the first row which can be decoded has."""
    schema, stages = task.schema(), [*row_stages(task), *added]
    bad = []
    for row in rows:
        try:
            made = apply_stages(stages, row)
        except BadRowError as error:
            bad.append(BadRow(row["origin"], str(error)))
            continue
        columns = {name: _resolve(column, made[name]) for name, column in schema.columns.items()}
        return replace(schema, columns=columns)
    _judge(task, bad, [])
    raise AssertionError("there are neither good nor bad rows")


def _resolve(column: Column, value: Any) -> Column:
    if column.ragged:
        return replace(column, shape=(None, *np.shape(value)[1:]))
    return column if None not in column.shape else replace(column, shape=np.shape(value))


def _split_rows(task: TaskData, rows: Sequence[RawRow], schema: Schema) -> np.ndarray:
    """Return each row's split, [N] text. Labels that raw rows already have are balanced over the splits."""
    labelled = [name for name, column in schema.columns.items() if column.names and name in rows[0]]
    config = task.config.data.prepare
    groups = [row[schema.group] for row in rows]
    split_of_group = assign_splits(
        groups,
        config.splits,
        config.seed,
        labels=np.stack([row[labelled[0]] for row in rows]) if labelled else None,
        declared=[row.get("split") for row in rows],
    )
    return np.array([split_of_group[group] for group in groups])


def _mean_row_bytes(task: TaskData, rows: Sequence[RawRow], schema: Schema, added: Sequence[MapStage]) -> int:
    """Return the bytes of a row on disk; where rows differ in size, the mean of some, evenly spaced."""
    if not any(column.ragged or column.dtype == BYTES for column in schema.columns.values()):
        return row_bytes(schema)
    stages = [*row_stages(task), *added]
    sizes: list[int] = []
    for index in np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED_ROWS), dtype=int).tolist():
        with contextlib.suppress(BadRowError):
            made = apply_stages(stages, rows[index])
            sizes.append(sum(value_bytes(made[name], column) for name, column in schema.columns.items()))
    return max(1, sum(sizes) // len(sizes)) if sizes else row_bytes(schema)


def _plan_shards(task: TaskData, split_of_row: np.ndarray, row_bytes: int) -> list[_PlannedShard]:
    """Cut each split, in reading order, into equal shards of at most `shard_mb`."""
    rows_per_shard = max(1, int(task.config.data.prepare.shard_mb * 1e6) // row_bytes)
    planned = []
    for split in SPLITS:
        (rows,) = np.nonzero(split_of_row == split)
        pieces = np.array_split(rows, -(-len(rows) // rows_per_shard)) if len(rows) else []
        planned += [
            _PlannedShard(f"{split}-{i:05d}.arrow", split, piece.tolist()) for i, piece in enumerate(pieces)
        ]
    return planned


def _fingerprint(source: Path) -> str:
    """Return a BLAKE2b hash of all files' relative paths and sizes, and of the bytes of tables and lists."""
    digest = hashlib.blake2b(digest_size=16)
    for folder, subfolders, files in os.walk(source):
        subfolders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            if not path.is_file():
                continue
            digest.update(f"{path.relative_to(source).as_posix()}\0{path.stat().st_size}\0".encode())
            if path.suffix.lower() in _TABLE_SUFFIXES:
                digest.update(path.read_bytes())
    return digest.hexdigest()


# --- the tasks' side: decode and write
# ----------------------------------------------------------------------------


def _write_all(
    task: TaskData,
    schema: Schema,
    folder: Path,
    shards: Sequence[_PlannedShard],
    rows: Sequence[RawRow],
    added: Sequence[MapStage],
    on_progress: Progress | None,
) -> list[dict[str, Any]]:
    """Write one shard per task; return the tasks' results in the shards' order."""
    import ray

    job = ShardJob(
        task=task.config.task,
        config=task.config.model_dump(mode="json"),
        schema=schema,
        folder=str(folder / SHARD_FOLDER),
        shards=[(shard.file, shard.split, ray.put([rows[i] for i in shard.rows])) for shard in shards],
        added=tuple(added),
    )
    return run_shard_tasks(partial(write_planned_shard, job=job), len(shards), on_progress)


# --- the end: manifest, quarantine
# ------------------------------------------------------------------------


def _gathered(
    schema: Schema,
    shards: Sequence[_PlannedShard],
    results: Sequence[dict[str, Any]],
    rows: Sequence[RawRow],
) -> _Written:
    """Return what the tasks wrote."""
    infos = tuple(_SHARD.validate_python(result["shard"]) for result in results if result["shard"])
    groups: dict[str, set[str]] = {}
    sums: Sums = {}
    for planned, result in zip(shards, results, strict=True):
        bad = {index for index, _ in result["bad"]}
        kept = {rows[row][schema.group] for i, row in enumerate(planned.rows) if i not in bad}
        groups.setdefault(planned.split, set()).update(kept)
        sums = add(sums, result["sums"]) if result["sums"] else sums
    return _Written(schema, infos, sums, groups, {})


def _finished(task: TaskData, folder: Path, written: _Written, on_progress: Progress | None) -> _Written:
    """Return it with the task's own statistics, and with merged rows where the task merges."""
    training = [shard for shard in written.shards if shard.split == "train"]
    written = replace(written, statistics=task.column_statistics(ShardRows(folder, training)))
    merge = task.merge()
    if merge is None:
        return written
    shard_mb = task.config.data.prepare.shard_mb
    merged = merge_shards(merge, folder, written.schema, written.shards, shard_mb, on_progress)
    remove(folder / UNMERGED)
    return replace(written, schema=merged.schema, shards=merged.shards, sums=merged.sums)


def _manifest(task: TaskData, written: _Written, source: Source, num_quarantined: int) -> Manifest:
    num_rows = {
        split: sum(info.rows for info in written.shards if info.split == split) for split in written.groups
    }
    counts = {
        split: SplitCounts(num_rows[split], len(groups))
        for split, groups in written.groups.items()
        if num_rows[split]
    }
    statistics = statistics_of(written.sums, written.schema)
    for name, own in written.statistics.items():
        statistics[name] = statistics.get(name, {}) | own
    return Manifest(
        schema=written.schema,
        shards=written.shards,
        counts=counts,
        statistics=statistics,
        source=source,
        recipe=Recipe(task.config.task, version("voxray"), task.config.data.prepare.model_dump(mode="json")),
        num_quarantined=num_quarantined,
    )


def _check_splits_filled(task: TaskData, manifest: Manifest) -> None:
    empty = [
        s for s in SPLITS if getattr(task.config.data.prepare.splits, s) > 0 and s not in manifest.counts
    ]
    if empty:
        raise InputError(
            *(f"split '{s}' is empty: all its rows were set aside; mend them first" for s in empty)
        )


def _write_quarantine(folder: Path, bad: Sequence[BadRow]) -> None:
    if not bad:
        return
    with (folder / QUARANTINE_NAME).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
        file.flush()
        os.fsync(file.fileno())
