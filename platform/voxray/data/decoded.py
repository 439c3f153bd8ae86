"""Copies of shards that hold what read stages make of their rows, in the node's cache.

So encoded images are decoded once per node, not in each epoch of each trial. A copy has its shard's rows and
windows, and takes its place where rows are read; orders and indexes stay those of the dataset. It is named by
the shard's sha256 and by all that its rows depend on: the stages, their arguments, this package's code. The
first process that wants it makes it, under a lock; its windows are checked like any shard's, and a damaged
copy is made again.
"""

import errno
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from voxray.config.errors import InputError
from voxray.core.batch import Columns
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import ReadStage
from voxray.data.config import DataConfig
from voxray.data.index import LENGTH, POSITION, VALID
from voxray.data.manifest import Manifest, ShardInfo, Window
from voxray.data.reader import ShardError, ShardReader
from voxray.data.shard_cache import ShardCache, node_cache
from voxray.data.shards import value_bytes, write_windows
from voxray.data.store import Store

ROWS_AT_ONCE = 16  # that a thread decodes
MAX_THREADS = 8
PROBED_ROWS = 4
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
OTHERWISE = "or read without copies: data.keep_decoded=false"


@dataclass(frozen=True)
class DecodedShards:
    """The copies of a dataset's shards. `columns` are those of the copies' rows; small, and picklable."""

    store: Store
    schema: Schema
    columns: Mapping[str, Column]
    row_bytes: float
    stages: tuple[ReadStage, ...]
    copies: ShardCache
    remote: ShardCache | None  # where remote shards are read from

    def fetch(self, info: ShardInfo) -> tuple[Path, ShardInfo]:
        """Return the copy of a shard, made if it is not there, and its description.

        Raises ShardError when the shard cannot be read, or the copy not be kept.
        """
        name = self._name(info)
        try:
            path = self.copies.made(
                name, int(info.rows * self.row_bytes), lambda path: self._make(info, path, name)
            )
            return path, _read_description(self._description(name))
        except OSError as error:
            if error.errno not in _FULL_DISK:
                raise
            raise ShardError(
                f"the disk of '{self.copies.folder}' is full while '{info.file}' is decoded; set "
                f"data.cache_dir to a folder on another disk, {OTHERWISE}"
            ) from error

    def forget(self, info: ShardInfo) -> None:
        """Remove the copy of a shard: it is damaged."""
        (self.copies.folder / f"{self._name(info)}.arrow").unlink(missing_ok=True)

    def _name(self, info: ShardInfo) -> str:
        return _name_of(info, self.stages)

    def _description(self, name: str) -> Path:
        return self.copies.folder / f"{name}.json"

    def _make(self, info: ShardInfo, path: Path, name: str) -> None:
        reader = open_shard(self.store, info, self.remote)
        schema = Schema(self.columns, self.schema.group, self.schema.sample_id)
        with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
            windows = (self._decoded_window(reader, rows, pool) for rows in _windows(info))
            made = write_windows(path, windows, schema, info.split)
        partial_file = path.with_suffix(f"{path.suffix}.json")
        partial_file.write_text(json.dumps(asdict(made)))
        partial_file.replace(self._description(name))

    def _decoded_window(
        self, reader: ShardReader, rows: range, pool: ThreadPoolExecutor
    ) -> list[Mapping[str, Any]]:
        parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
        decode = partial(staged, reader, self.schema, self.stages)
        return [row for _, after in pool.map(decode, parts) for row in self._rows(after)]

    def _rows(self, made: Columns) -> Iterator[Mapping[str, Any]]:
        for name, column in self.columns.items():
            if not column.ragged and column_of(made[name]) != (column.dtype, column.shape):
                raise InputError(
                    f"a read stage makes '{name}' of another shape in some rows, and rows of one shape alone "
                    f"can be kept; mend the stage, {OTHERWISE}"
                )
        for row in range(len(made[self.schema.sample_id])):
            yield {
                name: made[name][row][: made[name + LENGTH][row]] if column.ragged else made[name][row]
                for name, column in self.columns.items()
            }


def decoded_shards(
    store: Store,
    manifest: Manifest,
    stages: Sequence[ReadStage],
    config: DataConfig,
    remote: ShardCache | None,
) -> DecodedShards | None:
    """Return the copies that a run reads; None where it decodes each time.

    That is: `data.keep_decoded` is not true, nothing is decoded, the copies of all splits do not fit in
    `data.cache_gb`, rows may be set aside (`data.on_error`), or a stage makes rows of differing length.
    """
    if config.keep_decoded is not True or not stages or config.on_error != "fail":
        return None
    copies = node_cache(config)
    file = copies.folder / f"{_name_of(manifest.shards[0], stages)}.columns.json"
    copies.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            partial_file = file.with_suffix(".partial")
            partial_file.write_text(json.dumps(_probed(store, manifest, stages, remote)))
            partial_file.replace(file)
    found = json.loads(file.read_text())
    if found is None or found["row_bytes"] * sum(s.rows for s in manifest.shards) > copies.limit_bytes:
        return None
    columns = {name: _column(values) for name, values in found["columns"].items()}
    row_bytes = float(found["row_bytes"])
    return DecodedShards(store, manifest.schema, columns, row_bytes, tuple(stages), copies, remote)


def _probed(
    store: Store, manifest: Manifest, stages: Sequence[ReadStage], remote: ShardCache | None
) -> dict[str, Any] | None:
    """Decode the first rows; return, as JSON, the columns and the mean bytes of a row, or None: not kept."""
    first = manifest.shards[0]
    reader = open_shard(store, first, remote)
    before, made = staged(reader, manifest.schema, stages, range(min(PROBED_ROWS, first.rows)))
    columns = _columns_of(before, made, manifest.schema)
    if columns is None:
        return None
    num = len(made[manifest.schema.sample_id])
    num_bytes = sum(value_bytes(value, column) for n, column in columns.items() for value in made[n])
    return {"columns": {name: asdict(c) for name, c in columns.items()}, "row_bytes": num_bytes / num}


def _column(values: dict[str, Any]) -> Column:
    return Column(**{**values, "shape": tuple(values["shape"]), "names": tuple(values["names"])})


def open_shard(store: Store, info: ShardInfo, remote: ShardCache | None) -> ShardReader:
    """Open a shard of the dataset. Raises ShardError when it is missing or damaged."""
    return ShardReader(store.path(info.file) if remote is None else remote.fetch(store, info), info)


def staged(
    reader: ShardReader, schema: Schema, stages: Sequence[ReadStage], rows: range
) -> tuple[Columns, Columns]:
    """Return rows of a shard as a batch has them, and what the stages make of it."""
    taken = dict(reader.take(np.array(rows)))
    for name, column in schema.columns.items():
        if column.ragged:
            taken[name], taken[name + LENGTH] = _padded(taken[name])
    taken[VALID], taken[POSITION] = np.ones(len(rows), bool), np.arange(len(rows))
    made: Columns = taken
    for stage in stages:
        made = stage.function(made)
    return taken, {name: np.asarray(values) for name, values in made.items()}


def _padded(pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ragged rows padded with zeros to the longest, and their lengths."""
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    padded = np.zeros((len(pieces), lengths.max(initial=0), *pieces[0].shape[1:]), pieces[0].dtype)
    for row, piece in zip(padded, pieces, strict=True):
        row[: len(piece)] = piece
    return padded, lengths


def _columns_of(before: Columns, made: Columns, schema: Schema) -> dict[str, Column] | None:
    """Return the columns of what stages made; None where a ragged one is new or changed."""
    ragged = {name for name, column in schema.columns.items() if column.ragged}
    if {name.removesuffix(LENGTH) for name in made if name.endswith(LENGTH)} != ragged & set(made):
        return None
    found: dict[str, Column] = {}
    for name, values in made.items():
        if name in (VALID, POSITION) or name.endswith(LENGTH):
            continue
        old = schema.columns.get(name)
        if name in ragged:
            if not np.array_equal(values, before[name]):
                return None
        elif old is None or column_of(values) != (old.dtype, old.shape):
            old = Column(*column_of(values))
        assert old is not None
        found[name] = old
    return found if {schema.sample_id, schema.group} <= set(found) else None


def column_of(values: np.ndarray) -> tuple[str, tuple[int, ...]]:
    """Return the dtype and one row's shape of a column."""
    if values.dtype == object:
        return (BYTES if isinstance(values[0], bytes) else TEXT), ()
    return str(values.dtype), values.shape[1:]


def identity(function: Callable[..., Any]) -> Any:
    """Return what a stage's function is: its name, its arguments, and the code of the package it lies in."""
    if isinstance(function, partial):
        return [identity(function.func), repr(function.args), repr(sorted(function.keywords.items()))]
    name = getattr(function, "__qualname__", repr(function))
    module = function.__module__
    return [module, name, _code(module.partition(".")[0])]


@cache
def _code(package: str) -> str:
    """Return a hash of the sources of a package, or of a module that is none."""
    file = Path(inspect.getfile(importlib.import_module(package)))
    sources = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _name_of(info: ShardInfo, stages: Sequence[ReadStage]) -> str:
    made_of = [info.sha256, _code("voxray"), [identity(stage.function) for stage in stages]]
    return hashlib.blake2b(json.dumps(made_of).encode(), digest_size=32).hexdigest()


def _windows(info: ShardInfo) -> list[range]:
    """Return the rows of each window, without the footer."""
    ends = [0, *(window.end_row for window in info.windows[:-1])]
    return [range(start, end) for start, end in pairwise(ends)]


def _read_description(file: Path) -> ShardInfo:
    values = json.loads(file.read_text())
    return ShardInfo(**{**values, "windows": tuple(Window(**window) for window in values["windows"])})
