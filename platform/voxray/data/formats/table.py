"""Arrays beside a table, of any origin → rows: `x.npy` [N, …] and `rows.csv` with N lines in one folder.

Every `.csv`, `.tsv`, `.parquet`, `.npy` and `.npz` of a folder brings columns: a table's by their names, an
`.npy` one that is called like the file, an `.npz` one per array. Row i of each is row i of the dataset.
A ragged column is an array padded to the longest row, beside a column `<name>.length`. Folders below are
further tables. `.npy` files are mapped, not loaded.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow
from voxray.data.formats.flat.parquet import ParquetTable
from voxray.data.formats.flat.source import FlatFile, FlatRow
from voxray.data.formats.folder import find_files
from voxray.data.formats.npy import ArrayError, NpzArray, index_npz, read_header

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class _Part(Protocol):
    """One file of a folder; `count` is the rows of one of its columns, `read` gets a row's number."""

    @property
    def path(self) -> str: ...
    def names(self) -> Sequence[str]: ...
    def count(self, name: str) -> int: ...
    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]: ...


def find_tables(source: Path) -> Iterator[FlatFile]:
    """Yield a table per folder that holds files of the known kinds. Raises InputError where there is none."""
    folders: dict[Path, list[Path]] = {}
    for path in find_files(source, "*"):
        if path.suffix in _KINDS:
            folders.setdefault(path.parent, []).append(path)
    if not folders:
        raise InputError(f"'{source}' holds no {', '.join(_KINDS)} file; name the folder that holds them")
    for folder, paths in sorted(folders.items()):
        first = min(paths, key=lambda path: list(_KINDS).index(path.suffix))
        name = first.relative_to(source).as_posix()
        yield TableFolder(str(folder), name, tuple(map(_part, paths)))


@dataclass(frozen=True)
class TableFolder(FlatFile):
    """The files of one folder; `name` is that of its table."""

    folder: str
    name: str
    parts: tuple[_Part, ...]

    def names(self) -> list[str]:
        """Return the columns of all files."""
        return [name for part in self.parts for name in part.names()]

    def rows(self, small: Sequence[str], used: Sequence[str]) -> Iterator[FlatRow | BadRow]:
        """Yield every row, with all that is wanted of CSV tables; see FlatFile."""
        owners = self._owners(used)
        at_hand = [name for name in used if name in small or isinstance(owners[name], _CsvPart)]
        parts, tables = _by_part(owners, at_hand), self._tables()
        stem = self.name.rpartition(".")[0]
        for index in range(self._num_rows(owners)):
            origin = f"{self.name} row {tables[0].row_number(index) if tables else index}"
            try:
                yield FlatRow(index, f"{stem}/{index:08d}", origin, _read(parts, index))
            except ValueError as error:
                yield BadRow(origin, str(error))

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        """Return one row's values."""
        return _read(_parts_of(self, tuple(names)), place)

    def _tables(self) -> "list[_CsvPart]":
        return [part for part in self.parts if isinstance(part, _CsvPart)]

    def _owners(self, names: Sequence[str]) -> dict[str, _Part]:
        """Return each column's file. Raises InputError for a column that is in two."""
        owners: dict[str, _Part] = {}
        for name in names:
            holding = [part for part in self.parts if name in part.names()]
            if len(holding) > 1:
                files = " and ".join(f"'{part.path}'" for part in holding)
                raise InputError(f"column '{name}' is in {files}; keep one of them")
            owners[name] = holding[0]
        return owners

    def _num_rows(self, owners: Mapping[str, _Part]) -> int:
        """Return the number of rows. Raises InputError when those of the tables and used columns differ."""
        counts = {Path(table.path).name: table.count("") for table in self._tables()}
        for name, part in owners.items():
            if isinstance(part, _ParquetPart):
                part.check(name)
            if not isinstance(part, _CsvPart):
                counts[f"{Path(part.path).name} ('{name}')"] = part.count(name)
        if len(set(counts.values())) > 1:
            each = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise InputError(f"'{self.folder}': the files differ in their rows: {each}; mend them")
        return next(iter(counts.values()), 0)


def _by_part(owners: Mapping[str, _Part], names: Sequence[str]) -> list[tuple[_Part, list[str]]]:
    chosen: dict[str, tuple[_Part, list[str]]] = {}
    for name in names:
        chosen.setdefault(owners[name].path, (owners[name], []))[1].append(name)
    return list(chosen.values())


@lru_cache(maxsize=16)
def _parts_of(table: TableFolder, names: tuple[str, ...]) -> list[tuple[_Part, list[str]]]:
    return _by_part(table._owners(names), names)


def _read(parts: Sequence[tuple[_Part, list[str]]], place: int) -> dict[str, Any]:
    return {name: value for part, names in parts for name, value in part.read(place, names).items()}


# --- the kinds of files
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CsvPart:
    """A table of text; blank cells are missing. It is read whole, by the driver alone."""

    path: str
    header: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        return self.header

    def count(self, name: str) -> int:
        return len(self._lines())

    def row_number(self, index: int) -> int:
        """Return the line in the file; the header is row 1."""
        return self._lines()[index][0]

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        cells = self._lines()[place][1]
        if len(cells) != len(self.header):
            raise ValueError(f"the row has {len(cells)} cells, the header {len(self.header)}; mend it")
        return {name: cells[self.header.index(name)].strip() or None for name in names}

    def _lines(self) -> list[tuple[int, list[str]]]:
        return _read_csv(self.path, os.stat(self.path).st_mtime_ns)[1]


def _csv_part(path: Path) -> _CsvPart:
    return _CsvPart(str(path), _read_csv(str(path), path.stat().st_mtime_ns)[0])


@lru_cache(maxsize=2)
def _read_csv(path: str, modified_ns: int) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Return the header and the lines that are not blank, with their numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[Path(path).suffix])
            header = tuple(cell.strip() for cell in next(reader, []))
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' is no UTF-8 table ({error}); save it as UTF-8") from error
    if twice := sorted({name for name in header if header.count(name) > 1 and name}):
        raise InputError(f"'{path}': the column '{twice[0]}' comes twice; rename one")
    return header, lines


@dataclass(frozen=True)
class _ParquetPart:
    """A table, or arrays, of Parquet."""

    path: str

    def names(self) -> Sequence[str]:
        return self._table().names()

    def count(self, name: str) -> int:
        return self._table().num_rows()

    def check(self, name: str) -> None:
        self._table().check([name])

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        return self._table().read(place, names)

    def _table(self) -> ParquetTable:
        return ParquetTable(self.path, Path(self.path).name)


@dataclass(frozen=True)
class _NpyPart:
    """One array [N, …], mapped."""

    path: str
    shape: tuple[int, ...]

    def names(self) -> list[str]:
        return [Path(self.path).stem]

    def count(self, name: str) -> int:
        return _first_size(self.path, name, self.shape)

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        array = _mapped(self.path, os.stat(self.path).st_mtime_ns)
        if array.shape != self.shape:
            raise ValueError(f"'{self.path}' has the shape {list(array.shape)} now; prepare again")
        return {name: np.array(array[place]) for name in names}


@lru_cache(maxsize=32)
def _mapped(path: str, modified_ns: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class _NpzPart:
    """The arrays [N, …] of an archive."""

    path: str
    arrays: tuple[NpzArray, ...]

    def names(self) -> list[str]:
        return [array.name for array in self.arrays]

    def count(self, name: str) -> int:
        return _first_size(self.path, name, self._array(name).shape)

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        return {name: self._array(name).read_row(place, len(self._array(name).shape) - 1) for name in names}

    def _array(self, name: str) -> NpzArray:
        return next(array for array in self.arrays if array.name == name)


def _npy_part(path: Path) -> _NpyPart:
    with path.open("rb") as file:
        header = read_header(file)
        found = path.stat().st_size - file.tell()
    if header.num_bytes != found:
        raise ArrayError(f"its header promises {header.num_bytes:,} bytes, {found:,} follow")
    return _NpyPart(str(path), header.shape)


def _npz_part(path: Path) -> _NpzPart:
    return _NpzPart(str(path), tuple(index_npz(path).values()))


def _first_size(path: str, name: str, shape: tuple[int, ...]) -> int:
    if not shape:
        raise InputError(f"'{path}': '{name}' is a single value; an array with an entry per row is needed")
    return shape[0]


def _part(path: Path) -> _Part:
    """Return what a file brings. Raises InputError that names it."""
    try:
        return _KINDS[path.suffix](path)
    except (ArrayError, OSError) as error:
        raise InputError(f"'{path}': {error}") from error


_KINDS: dict[str, Callable[[Path], _Part]] = {
    **dict.fromkeys(_DELIMITERS, _csv_part),
    ".parquet": lambda path: _ParquetPart(str(path)),
    ".npy": _npy_part,
    ".npz": _npz_part,
}
