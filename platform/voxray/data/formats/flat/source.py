"""What all flat formats share: a file of rows, and which of its columns becomes which of the schema's."""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS, Schema
from voxray.core.task import BadRow

SPLIT = "split"
LENGTH = ".length"
CONSTANT = "="  # `=VALUE` in the place of a column's name: this value in every row
_SPLIT_CALLED = {
    **{split: split for split in SPLITS},
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}


@dataclass(frozen=True)
class FlatRow:
    """A row as its file lists it: where it stands, an id made of that, and the values that were read."""

    place: Any
    made_id: str
    origin: str
    values: dict[str, Any]


class FlatFile(ABC):
    """One file of rows, small and picklable: every row of it keeps it. `name` is for messages."""

    name: str

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return what a user may call the columns. Raises InputError for a file that cannot be read."""

    def find(self, name: str) -> str | None:
        """Return what `rows` and `read` call the column that a user names so; None when it is not there."""
        return name if name in self.names() else None

    @abstractmethod
    def rows(self, small: Sequence[str], used: Sequence[str]) -> Iterator[FlatRow | BadRow]:
        """Yield every row with the values of the columns `small`, and any others of `used` that are at hand.

        Raises InputError for a damaged file and for a column of `used` that must not or cannot be read.
        """

    @abstractmethod
    def read(self, place: Any, names: Sequence[str]) -> dict[str, Any]:
        """Return the values of one row, as stored. Raises ValueError, or OSError for a file that is gone."""


@dataclass(frozen=True)
class Sources:
    """Where the schema's columns come from: of the file by its names, or one value for all rows.

    Several names for one column are scalars that make up a vector. `lengths` has the column that tells how
    much of a padded ragged one counts. A sample id that is neither named nor constant is made of the place.
    """

    named: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, str]
    lengths: Mapping[str, str] = field(default_factory=dict[str, str])
    split: str = ""

    def needed(self, columns: Sequence[str]) -> list[str]:
        """Return what must be read of the file to make these of the schema's columns."""
        names = [name for ours in columns for name in self.named.get(ours, ())]
        names += [self.lengths[ours] for ours in columns if ours in self.lengths]
        return list(dict.fromkeys(names))


def find_sources(schema: Schema, columns: Mapping[str, str], file: FlatFile) -> Sources:
    """Return where the columns come from. `columns` maps ours, or `split`, to theirs or to `=VALUE`, and
    `<ragged column>.length` to the column of its lengths, where it is stored padded.

    Raises InputError that lists every column that is not there, with the nearest that is, and every key of
    `columns` that the schema does not have.
    """
    lengths_of = {f"{name}{LENGTH}": name for name, column in schema.columns.items() if column.ragged}
    known = (*schema.columns, SPLIT, *lengths_of)
    problems = [
        f"data.prepare.columns: the task has no column '{name}'; {_hint(name, known)}"
        for name in columns
        if name not in known
    ]
    named: dict[str, tuple[str, ...]] = {}
    constants: dict[str, str] = {}
    for ours, column in schema.columns.items():
        theirs = columns.get(ours, ours)
        if theirs.startswith(CONSTANT) and ours != schema.sample_id:
            constants[ours] = theirs.removeprefix(CONSTANT)
        elif found := _find(file, theirs, column.names):
            named[ours] = found
        elif theirs != schema.sample_id:  # which the place makes, for a group of each row's own too
            problems.append(_missing(file, ours, theirs))
    optional: dict[str, str] = {}
    defaults = {key: f"{columns.get(ours, ours)}{LENGTH}" for key, ours in lengths_of.items()}
    for key, default in ({SPLIT: SPLIT} | defaults).items():
        if found := file.find(columns.get(key, default)):
            optional[key] = found
        elif key in columns:
            problems.append(_missing(file, key, columns[key]))
    if problems:
        raise InputError(*problems)
    lengths = {ours: optional[key] for key, ours in lengths_of.items() if key in optional and ours in named}
    return Sources(named, constants, lengths, optional.get(SPLIT, ""))


def split_called(text: str) -> str | None:
    """Return the split that a folder or a value is called by, e.g. `validation`; None for another word."""
    return _SPLIT_CALLED.get(text.strip().casefold())


def split_of_path(name: str) -> str | None:
    """Return the split that a file's relative path declares: `train-00000.parquet`, `val/a.tar`, or None."""
    path = PurePosixPath(name)
    first_word = re.split(r"[-_.]", path.name, maxsplit=1)[0]
    for word in (first_word, *reversed(path.parts[:-1])):
        if split := split_called(word):
            return split
    return None


def _find(file: FlatFile, name: str, entries: Sequence[str]) -> tuple[str, ...]:
    """Return the column of that name, or else one column per entry of a vector (`labels.Mass` or `Mass`)."""
    if (found := file.find(name)) is not None:
        return (found,)
    for prefix in (f"{name}.", ""):
        each = [file.find(f"{prefix}{entry}") for entry in entries]
        if each and None not in each:
            return tuple(column for column in each if column is not None)
    return ()


def _missing(file: FlatFile, ours: str, theirs: str) -> str:
    return (
        f"{file.name}: no column '{theirs}'; {_hint(theirs, file.names())} Say which with "
        f"`columns={{{ours}: THEIRS}}`, or one value for all rows with `columns={{{ours}: =VALUE}}`"
    )


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"is '{near[0]}' meant?" if near else f"there are: {', '.join(known) or 'none'}."
