"""A shard's index: the small columns of its rows, in a file of their own beside the shard.

Filters, weights, groups and length buckets are worked out from it, so an epoch's plan reads no row data. It
holds every scalar, every column with names (labels), every text but the sample's id, and the length of every
ragged column under `<name>.length`.
"""

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash
from platformdirs import user_cache_path

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.data.checked import forget_oldest
from voxray.data.manifest import Manifest, ShardInfo
from voxray.data.store import Store

LENGTH = ".length"
VALID, POSITION = "valid", "position"  # columns that every batch gets
FOLDER = "indexes"  # of remote datasets, in the user's cache
OPEN_INDEXES = 64  # kept in memory at a time


class RowIndex(Protocol):
    """What the order asks of a shard's rows: one array per small column, rows first."""

    @property
    def names(self) -> Sequence[str]:
        """The columns that there are."""
        ...

    def column(self, shard: int, name: str) -> np.ndarray[Any, Any]:
        """Return a column of a shard's rows; text as an object array of str."""
        ...


def index_columns(schema: Schema) -> dict[str, Column]:
    """Return the columns that the index of a dataset of this schema has."""
    found: dict[str, Column] = {}
    for name, column in schema.columns.items():
        if column.ragged:
            found[name + LENGTH] = Column("int64")
        elif column.dtype == TEXT:
            if name != schema.sample_id:
                found[name] = column
        elif column.is_tensor and (not column.shape or column.names):
            found[name] = column
    return found


class IndexWriter:
    """Collects the index columns of a shard's rows while the shard is written."""

    def __init__(self, schema: Schema) -> None:
        """Begin with no row."""
        self._columns = index_columns(schema)
        self._values: dict[str, list[Any]] = {name: [] for name in self._columns}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the next rows."""
        for name, values in self._values.items():
            if name.endswith(LENGTH):
                values.extend(len(row[name.removesuffix(LENGTH)]) for row in rows)
            else:
                values.extend(row[name] for row in rows)

    def write(self, path: Path) -> str:
        """Write the index to `path`, fsynced, and return its xxh3-128 in hex."""
        arrays = {name: _to_arrow(values, self._columns[name]) for name, values in self._values.items()}
        sink = io.BytesIO()
        table = pa.table(arrays)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return xxhash.xxh3_128_hexdigest(data)


class ShardIndex:
    """The index of some shards of a dataset, read when asked for and checked against the manifest."""

    def __init__(self, store: Store, manifest: Manifest, shards: Sequence[ShardInfo]) -> None:
        """Name the shards; nothing is read."""
        self._store, self._shards = store, tuple(shards)
        self._columns = index_columns(manifest.schema)

    @property
    def names(self) -> Sequence[str]:
        """The columns that there are."""
        return tuple(self._columns)

    def column(self, shard: int, name: str) -> np.ndarray[Any, Any]:
        """Return a column of a shard's rows, [rows] or [rows, labels]; text as objects.

        Raises InputError when the index is missing or damaged.
        """
        info = self._shards[shard]
        array = read_index(self._store, info.index_file, info.index_xxh3).column(name).combine_chunks()
        if self._columns[name].dtype == TEXT:
            return array.to_numpy(zero_copy_only=False)
        values = array.flatten() if self._columns[name].shape else array
        return values.to_numpy(zero_copy_only=False).reshape(len(array), *self._columns[name].shape)


@lru_cache(maxsize=OPEN_INDEXES)
def read_index(store: Store, file: str, wanted: str) -> pa.Table:
    """Return an index file's table. Raises InputError when its hash is not the manifest's."""
    kept = None if store.is_local else _kept(wanted)
    if kept is not None:
        return _table(kept)
    data = store.read(file)
    if xxhash.xxh3_128_hexdigest(data) != wanted:
        raise InputError(
            f"index '{store.describe(file)}' is damaged: its hash is not the manifest's; "
            "prepare the dataset again"
        )
    if not store.is_local:
        _keep(data, wanted)
    return _table(data)


def _table(data: bytes) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def _kept(wanted: str) -> bytes | None:
    """Return the node's copy of a remote index, by its hash; None where there is none or it is damaged."""
    try:
        data = (user_cache_path("voxray") / FOLDER / wanted).read_bytes()
    except OSError:
        return None
    return data if xxhash.xxh3_128_hexdigest(data) == wanted else None


def _keep(data: bytes, wanted: str) -> None:
    folder = user_cache_path("voxray") / FOLDER
    partial = folder / f".{wanted}-{os.getpid()}"
    with contextlib.suppress(OSError):  # without a cache that can be written it is fetched again
        folder.mkdir(parents=True, exist_ok=True)
        forget_oldest(folder)
        partial.write_bytes(data)
        partial.replace(folder / wanted)


def _to_arrow(values: Sequence[Any], column: Column) -> pa.Array:
    if column.dtype == TEXT:
        return pa.array(values, pa.string()).dictionary_encode()
    array = np.asarray(values, column.dtype)
    if not column.shape:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array[0].size)
