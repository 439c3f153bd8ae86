"""WebDataset tars as flat datasets, on top of `formats.webdataset`: a sample is a row, a member a column.

A member `000.image.npy` is the column `image.npy`, or `image` where no other member is called so; an entry
of a JSON object or an array of an `.npz` is `json/age`, or `age`; `jpg;png` is whichever of them there is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError
from voxray.data.formats.flat.source import FlatFile, FlatRow
from voxray.data.formats.webdataset import (
    TYPES,
    Members,
    decode_field,
    find_tars,
    first_members,
    read_member,
    read_tar,
)

_HOLD_MORE = ("json", "npz")


def find_tar_files(source: Path) -> Iterator[FlatFile]:
    """Yield the tars below a folder. Raises InputError where there is none."""
    for path in find_tars(source):
        yield TarFile(str(source), str(path), path.relative_to(source).as_posix())


@dataclass(frozen=True)
class TarFile(FlatFile):
    """One tar. A row's place is its key and where its members lie."""

    source: str
    path: str
    name: str

    def names(self) -> list[str]:
        """Return the columns of the first sample."""
        return list(_columns(self.path))

    def find(self, name: str) -> str | None:
        """Return the member's field and, for a value inside it, `/` and its name."""
        if any(field in _columns(self.path) for field in name.split(";")) and ";" in name:
            return name
        return _columns(self.path).get(name)

    def rows(self, small: Sequence[str], used: Sequence[str]) -> Iterator[FlatRow | BadRow]:
        """Yield every sample; see FlatFile."""
        fields = list(dict.fromkeys(name.partition("/")[0] for name in used))
        for row in read_tar(Path(self.source), Path(self.path), fields):
            if isinstance(row, BadRow):
                yield row
                continue
            place = (row["key"], row["members"])
            try:
                values = self.read(place, small)
            except ValueError as error:
                yield BadRow(row["origin"], str(error))
                continue
            yield FlatRow(place, row["sample_id"], row["origin"], values)

    def read(self, place: tuple[str, Members], names: Sequence[str]) -> dict[str, Any]:
        """Return the values of one sample's members."""
        key, members = place
        row = {"key": key, "members": members, "tar": self.path}
        decoded: dict[str, Any] = {}
        try:
            for field in dict.fromkeys(_field(name, members) for name in names):
                decoded |= _decode(field, read_member(row, field))
        except BadRowError as error:
            raise ValueError(str(error)) from error
        return {name: _pick(decoded, name, members) for name in names}


def _decode(field: str, content: bytes) -> dict[str, Any]:
    """Return what a member holds by the names of `TarFile.find`, entries of a JSON object too."""
    columns = decode_field(field, content, f"member '{field}'")
    value = columns.get(field)
    if isinstance(value, dict):
        columns |= {f"{field}/{key}": entry for key, entry in value.items()}
    return columns


def _field(name: str, members: Members) -> str:
    alternatives = name.partition("/")[0].split(";")
    return next((field for field in alternatives if field in members), alternatives[0])


def _pick(decoded: dict[str, Any], name: str, members: Members) -> Any:
    full = name if "/" in name else _field(name, members)
    if full not in decoded:
        raise ValueError(f"it has no '{full}'; add it, or remove the sample")
    return decoded[full]


@lru_cache(maxsize=4)
def _columns(path: str) -> dict[str, str]:
    """Return what the columns of a tar may be called → field and entry; of two with one name the first."""
    first = first_members(Path(path))
    row = {"key": "first sample", "members": first, "tar": path}
    columns = {field: field for field in first}
    for field in first:
        stem, _, kind = field.rpartition(".")
        if stem and kind in TYPES:
            columns.setdefault(stem, field)
    for field in first:
        if field.rpartition(".")[2] not in _HOLD_MORE:
            continue
        try:
            inside = _decode(field, read_member(row, field))
        except BadRowError as error:
            raise InputError(f"'{path}' first sample: {error}") from error
        for name in inside:
            columns.setdefault(name, name)
            columns.setdefault(name.partition("/")[2] or name, name)
    return columns
