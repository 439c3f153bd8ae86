"""Parquet files as flat datasets. The schema is checked before a value is read; nothing is unpickled.

Extension types (pickled objects, and whatever a library registers) are refused, nested ones too. Only tensor
types are taken, by the plain list of numbers that they are stored as.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from voxray.config.errors import InputError
from voxray.core.task import BadRow
from voxray.data.formats.flat.source import FlatFile, FlatRow
from voxray.data.formats.folder import find_files
from voxray.data.formats.rows import first_line

CHUNK_BYTES = 16 << 20  # decoded at a time
MAX_CHUNK_ROWS = 8192
_READ_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError)


def find_parquet(source: Path) -> Iterator[FlatFile]:
    """Yield the files `*.parquet` below a folder. Raises InputError where there is none."""
    paths = find_files(source, "*.parquet")
    if not paths:
        raise InputError(f"'{source}' holds no .parquet file; name the folder that holds them")
    for path in paths:
        yield ParquetTable(str(path), path.relative_to(source).as_posix())


@dataclass(frozen=True)
class ParquetTable(FlatFile):
    """One file. A column inside a struct is called `struct/column`, e.g. `image/bytes`."""

    path: str
    name: str

    def names(self) -> list[str]:
        """Return the columns, those inside structs too."""
        schema = self._schema()
        inside = [f"{field.name}/{child.name}" for field in schema for child in _children(field.type)]
        return [*schema.names, *inside]

    def num_rows(self) -> int:
        """Return the rows in the file. Raises InputError for a damaged one."""
        with self._open() as file:
            return file.metadata.num_rows

    def rows(self, small: Sequence[str], used: Sequence[str]) -> Iterator[FlatRow | BadRow]:
        """Yield every row; see FlatFile."""
        self.check(used)
        index = 0
        try:
            with self._open() as file:
                for batch in file.iter_batches(MAX_CHUNK_ROWS, columns=_leaves(small)) if small else ():
                    arrays = {name: _column(batch, name) for name in small}
                    for place in range(batch.num_rows):
                        yield self._row(index, arrays, place)
                        index += 1
                for left in range(index, file.metadata.num_rows):
                    yield self._row(left, {}, 0)
        except _DAMAGE as error:
            raise self._damaged(error, index) from error

    def check(self, used: Sequence[str]) -> None:
        """Raise InputError that lists the columns whose type is not read."""
        schema = self._schema()
        if len(set(schema.names)) < len(schema.names):
            raise InputError(f"'{self.path}': two columns have the same name; rename one")
        problems = []
        for name in used:
            outer, slash, inner = name.partition("/") if name not in schema.names else (name, "", "")
            kind = schema.field(outer).type
            kind = kind.field(inner).type if slash else kind
            if not _is_plain(kind):
                problems.append(
                    f"'{self.path}': column '{name}' has the type {str(kind)[:80]}, which is not read; save "
                    "it as numbers, text, bytes, or lists of numbers"
                )
        if problems:
            raise InputError(*problems)

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        """Return one row's values; rows that follow each other in the file are cheap."""
        modified_ns = os.stat(self.path).st_mtime_ns
        try:
            return _cursor(self.path, tuple(names), modified_ns).row(place)
        except (pa.ArrowException, IndexError) as error:
            raise ValueError(
                f"row {place} cannot be read ({first_line(error)}); fetch the file again"
            ) from error

    def _row(self, index: int, arrays: Mapping[str, pa.Array], place: int) -> FlatRow | BadRow:
        origin = f"{self.name} row {index}"
        try:
            values = _values(arrays, place)
        except ValueError as error:
            return BadRow(origin, str(error))
        return FlatRow(index, f"{self.name.removesuffix('.parquet')}/{index:08d}", origin, values)

    def _schema(self) -> pa.Schema:
        try:
            return _read_schema(self.path, os.stat(self.path).st_mtime_ns)
        except _DAMAGE as error:
            raise self._damaged(error, 0) from error

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path)
        except _DAMAGE as error:
            raise self._damaged(error, 0) from error

    def _damaged(self, error: Exception, index: int) -> InputError:
        if isinstance(error, InputError):
            return error
        place = f" after row {index}" if index else ""
        return InputError(f"'{self.path}'{place}: {first_line(error)}; it is no Parquet file, or damaged")


@lru_cache(maxsize=64)
def _read_schema(path: str, modified_ns: int) -> pa.Schema:
    with pq.ParquetFile(path) as file:
        return file.schema_arrow


class _Cursor:
    """Reads rows of one file in chunks of bounded size, forwards; going back starts a row group again."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self._file = pq.ParquetFile(path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
        self._names = names
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        row_bytes = max([group.total_byte_size // max(1, group.num_rows) for group in groups], default=1)
        self._chunk_rows = max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))
        self._group, self._first, self._end = -1, 0, 0
        self._chunks: Iterator[pa.RecordBatch] = iter(())
        self._arrays: dict[str, pa.Array] = {}

    def row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"the file has {self._starts[-1]} rows now")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        if group != self._group or index < self._first:
            self._group, self._end = group, int(self._starts[group])
            self._chunks = self._file.iter_batches(self._chunk_rows, [group], _leaves(self._names))
        while index >= self._end:
            if (chunk := next(self._chunks, None)) is None:
                raise IndexError("its row group ends early")
            self._first, self._end = self._end, self._end + chunk.num_rows
            self._arrays = {name: _column(chunk, name) for name in self._names}
        return _values(self._arrays, index - self._first)


@lru_cache(maxsize=4)
def _cursor(path: str, names: tuple[str, ...], modified_ns: int) -> _Cursor:
    return _Cursor(path, names)


# --- types and values
# ----------------------------------------------------------------------------------------------------------


def _children(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(i) for i in range(kind.num_fields)] if types.is_struct(kind) else []


def _is_list(kind: pa.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_numbers(kind: pa.DataType) -> bool:
    return _is_number(kind) or (_is_list(kind) and _is_numbers(kind.value_type))


def _is_plain(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        order = list(getattr(kind, "permutation", None) or ())  # of axes; only the plain one is read
        return _is_list(kind.storage_type) and _is_numbers(kind.storage_type) and order == sorted(order)
    if types.is_dictionary(kind):
        return not _is_list(kind.value_type) and _is_plain(kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_bytes = (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )
    return _is_numbers(kind) or is_text or is_bytes or types.is_null(kind)


def _leaves(names: Sequence[str]) -> list[str]:
    """Return the names as pyarrow selects them; a name that itself has a slash selects nothing more."""
    return [*names, *(name.replace("/", ".") for name in names if "/" in name)]


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name in batch.schema.names:
        array = batch.column(name)
    else:
        outer, _, inner = name.partition("/")
        index = batch.schema.field(outer).type.get_field_index(inner)
        array = pc.call_function("struct_field", [batch.column(outer)], pc.StructFieldOptions([index]))
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _values(arrays: Mapping[str, pa.Array], index: int) -> dict[str, Any]:
    """Return one row's values. Raises ValueError that names the column."""
    values: dict[str, Any] = {}
    for name, array in arrays.items():
        try:
            values[name] = _value(array, index)
        except ValueError as error:
            raise ValueError(f"column '{name}' {error}") from error
    return values


def _value(array: pa.Array, index: int) -> Any:
    """Return one value: a number, text, bytes, None, or an array for a list."""
    scalar = array[index]
    if not scalar.is_valid:
        return None
    return _numpy(scalar.values) if _is_list(array.type) else scalar.as_py()


def _numpy(array: pa.Array) -> np.ndarray:
    """Return nested lists as an array; NaN for what is missing among floats. Raises ValueError."""
    if not _is_list(array.type):
        if array.null_count and not types.is_floating(array.type):
            raise ValueError("has missing entries; only floats can be missing")
        return array.to_numpy(zero_copy_only=False)
    if array.null_count:
        raise ValueError("has missing rows")
    lengths = np.unique(pc.call_function("list_value_length", [array]).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError("has rows of different lengths")
    inner = _numpy(array.flatten())
    return inner.reshape(len(array), int(lengths[0]) if len(lengths) else 0, *inner.shape[1:])
