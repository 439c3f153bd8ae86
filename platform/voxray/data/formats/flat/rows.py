"""Rows of a flat dataset: a light part for the driver (ids, group, split, labels), the rest in the tasks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.flat.mds import find_mds
from voxray.data.formats.flat.parquet import find_parquet
from voxray.data.formats.flat.source import (
    FlatFile,
    FlatRow,
    Sources,
    find_sources,
    split_called,
    split_of_path,
)
from voxray.data.formats.flat.tars import find_tar_files
from voxray.data.formats.flat.values import cut, fit, fit_constant, join
from voxray.data.formats.rows import first_line
from voxray.data.formats.table import find_tables

_TEXT = Column(TEXT)
_MADE_ID = ""  # among the values of a row: the id that its place makes
FORMATS: dict[str, Callable[[Path], Iterable[FlatFile]]] = {
    "parquet": find_parquet,
    "webdataset": find_tar_files,
    "mds": find_mds,
    "table": find_tables,
}


@dataclass(frozen=True)
class Imported:
    """The file that a row stands in and where the schema's columns come from; all rows of a file share it."""

    file: FlatFile
    sources: Sources


def flat_rows(
    format: str, source: Path, schema: Schema, columns: Mapping[str, str]
) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per row of every file below `source`, by the files' paths.

    A row has the sample id, the group, `split` where a column, the file's name or a folder's declares it, the
    vectors with names (labels, which splits are balanced by), origin, and what `read_flat_row` needs.
    `columns` maps the schema's columns, or `split`, to the files' own names, or to `=VALUE`.

    Raises InputError for a folder without such files, a damaged file, a column that is missing or must not be
    read.
    """
    for file in FORMATS[format](source):
        sources = find_sources(schema, columns, file)
        light = [name for name in schema.columns if _is_light(name, schema)]
        small = sources.needed(light) + ([sources.split] if sources.split else [])
        used = list(dict.fromkeys(small + sources.needed(list(schema.columns))))
        declared = None if sources.split else split_of_path(file.name)
        _check_constants(sources, schema)
        for row in file.rows(list(dict.fromkeys(small)), used):
            if isinstance(row, BadRow):
                yield row
                continue
            yield _raw_row(row, Imported(file, sources), schema, light, declared)


def read_flat_row(row: RawRow, schema: Schema) -> RawRow:
    """Return the row with every column of the schema. A map stage: it reads what the light part left.

    Raises BadRowError that names the column for a value that does not fit it.
    """
    imported: Imported = row["flat"]
    sources, values = imported.sources, row["values"]
    left = [name for name in schema.columns if name not in row]
    names = [name for name in sources.needed(left) if name not in values]
    try:
        if names:
            values = values | imported.file.read(row["place"], names)
        made = {name: _column(name, sources, values, schema) for name in left}
    except OSError as error:
        raise BadRowError(f"'{imported.file.name}' cannot be read: {first_line(error)}") from error
    except ValueError as error:
        raise BadRowError(first_line(error)) from error
    kept = {name: value for name, value in row.items() if name not in ("flat", "values", "place")}
    return kept | made


def _is_light(name: str, schema: Schema) -> bool:
    """Whether the driver reads a column: those that make splits."""
    column = schema.columns[name]
    return name in (schema.sample_id, schema.group) or (bool(column.names) and len(column.shape) == 1)


def _raw_row(
    row: FlatRow, imported: Imported, schema: Schema, light: list[str], declared: str | None
) -> RawRow | BadRow:
    sources = imported.sources
    values = row.values | {_MADE_ID: row.made_id}
    made: RawRow = {}
    try:
        for name in light:
            made[name] = _column(name, sources, values, schema)
        for name in (schema.sample_id, schema.group):
            if not made[name]:
                raise ValueError(f"'{name}' is empty; every row needs one")
        if split := _declared(row, sources) or declared:
            made["split"] = split
    except ValueError as error:
        return BadRow(row.origin, first_line(error))
    rest = {"origin": row.origin, "flat": imported, "values": values, "place": row.place}
    return made | rest


def _declared(row: FlatRow, sources: Sources) -> str | None:
    if not sources.split or not (called := fit(row.values[sources.split], _TEXT)):
        return None
    if (split := split_called(called)) is None:
        raise ValueError(f"'{called}' is no split; write train, val or test, or leave it empty")
    return split


def _column(name: str, sources: Sources, values: Mapping[str, Any], schema: Schema) -> Any:
    """Return one column of a row from the values that its file holds. Raises ValueError that names it."""
    column = schema.columns[name]
    try:
        if name in sources.constants:
            return fit_constant(sources.constants[name], column)
        theirs = sources.named.get(name, (_MADE_ID,))
        if len(theirs) > 1:
            return join([values[each] for each in theirs], column)
        (value,) = (values[each] for each in theirs)
        if name in sources.lengths:
            value = cut(value, values[sources.lengths[name]])
        return fit(value, column)
    except ValueError as error:
        raise ValueError(f"column '{name}' {error}") from error


def _check_constants(sources: Sources, schema: Schema) -> None:
    problems = []
    for name in sources.constants:
        try:
            _column(name, sources, {}, schema)
        except ValueError as error:
            problems.append(f"data.prepare.columns: {error}")
    if problems:
        raise InputError(*problems)
