"""One shard: rows in an uncompressed Arrow IPC file, read by memory map. Any Arrow library reads it alone.

A tensor is a FixedSizeList whose field metadata tells its dtype, shape and unit; text is a string column.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.data.manifest import SHARD_FOLDER, ShardInfo

MAX_ROWS_PER_RECORD_BATCH = 1024
MAX_BYTES_PER_RECORD_BATCH = 16 << 20  # bounds the writer's memory: one 1024×1024 image is 1 MiB
_NOMINAL_TEXT_BYTES = 32
# Longer rows are copied singly: numpy's fancy indexing would make a second copy of them.
COPIED_SINGLY_BYTES = 4096


def row_bytes(schema: Schema) -> int:
    """Return the bytes of one row on disk; text is counted as 32 bytes."""
    return sum(
        _NOMINAL_TEXT_BYTES if c.dtype == TEXT else prod(_sizes(c)) * np.dtype(c.dtype).itemsize
        for c in schema.columns.values()
    )


def write_shard(
    path: Path, rows: Iterable[Mapping[str, Any]], schema: Schema, split: str
) -> ShardInfo | None:
    """Write rows of the schema to `path` and fsync it. Without rows it returns None and leaves no file.

    The bytes depend on the rows and the schema alone. A shape with None in it must be resolved before; a
    value of another shape or dtype than the schema's is an assertion: the caller has checked it.
    """
    arrow_schema = pa.schema([_field(name, column) for name, column in schema.columns.items()])
    batch_rows = min(MAX_ROWS_PER_RECORD_BATCH, max(1, MAX_BYTES_PER_RECORD_BATCH // row_bytes(schema)))
    stream = iter(rows)
    num_rows = 0
    with path.open("wb") as raw:
        file = _HashingFile(raw)
        with pa.ipc.new_file(pa.PythonFile(file, "w"), arrow_schema) as writer:
            while batch := list(islice(stream, batch_rows)):
                arrays = [_to_arrow([row[n] for row in batch], c) for n, c in schema.columns.items()]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=arrow_schema))
                num_rows += len(batch)
        raw.flush()
        os.fsync(raw.fileno())
    if num_rows == 0:
        path.unlink()
        return None
    return ShardInfo(f"{SHARD_FOLDER}/{path.name}", split, num_rows, file.num_bytes, file.sha256.hexdigest())


def open_shard(path: Path) -> "ShardReader":
    """Memory-map a shard. Raises InputError when it is missing or is no Arrow IPC file of ours."""
    return ShardReader(path)


class ShardReader:
    """Rows of one memory-mapped shard. Tensor columns are read through views of the map, without a copy."""

    def __init__(self, path: Path) -> None:
        """Map the file; no row is read."""
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
            self.columns = {field.name: _column(field) for field in self._file.schema}
        except FileNotFoundError:
            raise InputError(f"shard '{path}' is missing; prepare the dataset again") from None
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"shard '{path}' is no shard of voxray or is damaged ({error}); see `voxray data verify`"
            ) from None
        # First row of each record batch, and after the last one the number of rows.
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._views = {name: self._tensor_views(name) for name, c in self.columns.items() if c.dtype != TEXT}

    @property
    def num_rows(self) -> int:
        """Rows in the shard."""
        return int(self._starts[-1])

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return rows in the given order: [len(rows), *shape] per column, text as an object array of str.

        The arrays are fresh copies. `columns` default to all. Raises IndexError for a row that is not there.
        """
        rows = np.asarray(rows, dtype=np.int64)
        out = self.empty(len(rows), columns)
        self.take_into(out, np.arange(len(rows)), rows)
        return out

    def empty(self, num_rows: int, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return arrays [num_rows, *shape] to take rows into, one per column."""
        chosen = {name: self.columns[name] for name in columns or self.columns}
        return {
            name: np.empty((num_rows, *_sizes(c)), dtype=object if c.dtype == TEXT else c.dtype)
            for name, c in chosen.items()
        }

    def take_into(self, out: Mapping[str, np.ndarray], places: np.ndarray, rows: np.ndarray) -> None:
        """Write the given rows at `places` of the arrays in `out`, for the columns that `out` has.

        Raises IndexError for a row that is not there.
        """
        if rows.size and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(f"rows must lie in 0..{self.num_rows - 1}, got {rows.min()}..{rows.max()}")
        for index, inside, local in self._pieces(rows):
            for name, array in out.items():
                self._copy(name, index, local, array, places[inside])

    def _pieces(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield per record batch: its index, where its rows go in the result, which of its rows they are."""
        batch_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(batch_of_row):
            (places,) = np.nonzero(batch_of_row == index)
            yield int(index), places, rows[places] - self._starts[index]

    def _copy(self, name: str, index: int, local: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Copy rows `local` of one record batch to `places` of `out`."""
        if self.columns[name].dtype == TEXT:
            texts = self._batches[index].column(name).take(pa.array(local))
            out[places] = texts.to_numpy(zero_copy_only=False)
            return
        view = self._views[name][index]
        if view[:1].nbytes < COPIED_SINGLY_BYTES:
            out[places] = view[local]
            return
        for place, row in zip(places.tolist(), local.tolist(), strict=True):
            out[place] = view[row]

    def _tensor_views(self, name: str) -> list[np.ndarray]:
        shape = _sizes(self.columns[name])
        arrays = (batch.column(name) for batch in self._batches)
        flat = (array.values if shape else array for array in arrays)
        return [values.to_numpy(zero_copy_only=True).reshape(-1, *shape) for values in flat]


class _HashingFile:
    """A writable file that hashes what passes through it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        return self._raw.write(data)

    def flush(self) -> None:
        self._raw.flush()

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        self.closed = True


def _sizes(column: Column) -> tuple[int, ...]:
    sizes = tuple(size for size in column.shape if size is not None)
    assert len(sizes) == len(column.shape), f"the shape {column.shape} is not resolved"
    return sizes


def _field(name: str, column: Column) -> pa.Field:
    description = {
        "dtype": column.dtype,
        "shape": list(_sizes(column)),
        "unit": column.unit,
        "names": list(column.names),
    }
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()
    }
    if column.dtype == TEXT:
        return pa.field(name, pa.string(), nullable=False, metadata=metadata)
    kind = pa.from_numpy_dtype(np.dtype(column.dtype))
    if column.shape:
        kind = pa.list_(pa.field("item", kind, nullable=False), prod(_sizes(column)))
    return pa.field(name, kind, nullable=False, metadata=metadata)


def _column(field: pa.Field) -> Column:
    text = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(
        text["dtype"], tuple(json.loads(text["shape"])), text["unit"], tuple(json.loads(text["names"]))
    )


def _to_arrow(values: list[Any], column: Column) -> pa.Array:
    if column.dtype == TEXT:
        return pa.array(values, pa.string())
    tensor = np.asarray(values)
    assert tensor.shape == (len(values), *_sizes(column)), (
        f"rows of shape {tensor.shape[1:]}, not {column.shape}"
    )
    tensor = tensor.astype(column.dtype, casting="same_kind", copy=False)
    flat = pa.array(tensor.reshape(-1))
    if not column.shape:
        return flat
    kind = pa.list_(pa.field("item", flat.type, nullable=False), prod(_sizes(column)))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)
