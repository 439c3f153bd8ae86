"""Writing one shard: rows in an uncompressed Arrow IPC file, and its index beside it.

A tensor is a FixedSizeList whose field metadata tells its dtype, shape and unit; a ragged tensor is a
LargeList (offsets and values) of such rows; text is a string, an encoded image a binary column. Any Arrow
library reads the file alone. `data/reader.py` reads it here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import xxhash

from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.data.index import IndexWriter
from voxray.data.manifest import INDEX_FOLDER, SHARD_FOLDER, ShardInfo, Window

MAX_ROWS_PER_WINDOW = 1024
MAX_BYTES_PER_WINDOW = 16 << 20  # bounds the writer's memory: one 1024×1024 image is 1 MiB
_NOMINAL_BYTES = {TEXT: 32, BYTES: 65_536}
_NOMINAL_RAGGED = 500  # entries of a ragged axis, where only an estimate is wanted


def row_bytes(schema: Schema) -> int:
    """Estimate the bytes of one row on disk: exact for tensors, nominal for text, encoded and ragged ones."""
    return sum(
        _NOMINAL_BYTES[c.dtype]
        if c.dtype in _NOMINAL_BYTES
        else prod(inner_shape(c)) * np.dtype(c.dtype).itemsize * (_NOMINAL_RAGGED if c.ragged else 1)
        for c in schema.columns.values()
    )


def inner_shape(column: Column) -> tuple[int, ...]:
    """Return the sizes that all rows share: the shape, without a ragged column's first axis."""
    sizes = column.shape[1:] if column.ragged else column.shape
    known = tuple(size for size in sizes if size is not None)
    assert len(known) == len(sizes), f"the shape {column.shape} is not resolved"
    return known


def write_shard(
    path: Path, rows: Iterable[Mapping[str, Any]], schema: Schema, split: str
) -> ShardInfo | None:
    """Write rows of the schema to `path`, their index columns to the index folder beside it; fsync both.

    Without rows it returns None and leaves no file. The bytes depend on the rows and the schema alone. A
    shape with None in it must be resolved before; a value of another shape or dtype than the schema's is an
    assertion: the caller has checked it.
    """
    index = IndexWriter(schema)

    def indexed() -> Iterator[list[Mapping[str, Any]]]:
        for window in _windows_of(rows, schema):
            index.add(window)
            yield window

    info = write_windows(path, indexed(), schema, split)
    if info.rows == 0:
        path.unlink()
        return None
    folder = path.parent.parent / INDEX_FOLDER
    folder.mkdir(exist_ok=True)
    return replace(info, index_xxh3=index.write(folder / path.name))


def write_windows(
    path: Path, windows: Iterable[list[Mapping[str, Any]]], schema: Schema, split: str
) -> ShardInfo:
    """Write a shard of which each window is given, without an index; fsync it. `index_xxh3` stays empty."""
    arrow_schema = pa.schema([_field(name, column) for name, column in schema.columns.items()])
    ends: list[Window] = []
    num_rows = 0
    with path.open("wb") as raw:
        file = _HashingFile(raw)
        with pa.ipc.new_file(pa.PythonFile(file, "w"), arrow_schema) as writer:
            for window in windows:
                arrays = [_to_arrow([row[n] for row in window], c) for n, c in schema.columns.items()]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=arrow_schema))
                num_rows += len(window)
                ends.append(file.end_window(num_rows))
        ends.append(file.end_window(num_rows))
        raw.flush()
        os.fsync(raw.fileno())
    name = f"{SHARD_FOLDER}/{path.name}"
    return ShardInfo(name, split, num_rows, file.num_bytes, file.sha256.hexdigest(), tuple(ends), "")


def _windows_of(rows: Iterable[Mapping[str, Any]], schema: Schema) -> Iterator[list[Mapping[str, Any]]]:
    """Yield rows in lists that make one record batch each, bounded in rows and bytes."""
    batch: list[Mapping[str, Any]] = []
    num_bytes = 0
    for row in rows:
        size = sum(value_bytes(row[name], column) for name, column in schema.columns.items())
        if batch and (len(batch) == MAX_ROWS_PER_WINDOW or num_bytes + size > MAX_BYTES_PER_WINDOW):
            yield batch
            batch, num_bytes = [], 0
        batch.append(row)
        num_bytes += size
    if batch:
        yield batch


def value_bytes(value: Any, column: Column) -> int:
    """Return the bytes of one value on disk."""
    if not column.is_tensor:
        return len(value)
    return np.size(value) * np.dtype(column.dtype).itemsize


class _HashingFile:
    """A writable file that hashes what passes through it, as a whole and per window."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._window = xxhash.xxh3_128()
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def end_window(self, num_rows: int) -> Window:
        """Return the window that ends here: the rows and bytes up to it, and the hash of its own bytes."""
        window = Window(num_rows, self.num_bytes, self._window.hexdigest())
        self._window.reset()
        return window

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self._window.update(data)
        self.num_bytes += len(data)
        return self._raw.write(data)

    def flush(self) -> None:
        self._raw.flush()

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        self.closed = True


def _field(name: str, column: Column) -> pa.Field:
    description = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(column).items()
    }
    return pa.field(name, _arrow_type(column), nullable=False, metadata=description)


def _arrow_type(column: Column) -> pa.DataType:
    if column.dtype == TEXT:
        return pa.string()
    if column.dtype == BYTES:
        return pa.large_binary()
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    if inner_shape(column):
        kind = pa.list_(pa.field("item", kind, nullable=False), prod(inner_shape(column)))
    return pa.large_list(pa.field("item", kind, nullable=False)) if column.ragged else kind


def _to_arrow(values: list[Any], column: Column) -> pa.Array:
    if not column.is_tensor:
        return pa.array(values, _arrow_type(column))
    inner = inner_shape(column)
    arrays = [np.asarray(value) for value in values]
    tensor = np.concatenate(arrays) if column.ragged else np.stack(arrays)
    own = tensor.shape[1:]
    assert own == inner, f"rows of shape {own}, not {column.shape}"
    tensor = tensor.astype(column.dtype, casting="same_kind", copy=False)
    array: pa.Array = pa.array(tensor.reshape(-1))
    if inner:
        kind = pa.list_(pa.field("item", array.type, nullable=False), prod(inner))
        array = pa.FixedSizeListArray.from_arrays(array, type=kind)
    if not column.ragged:
        return array
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), array, type=_arrow_type(column))
