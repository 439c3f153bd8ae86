"""MosaicML MDS folders as flat datasets: `index.json` beside shard files → rows.

A shard is: uint32 number of samples N; N + 1 uint32 offsets; the writer's config as JSON; the samples. A
sample is: uint32 size of each column without a fixed one; then the columns' bytes, in the index's order. A
packed shard (br, bz2, gz, snappy, zstd) is unpacked in memory. The hashes that the index gives are checked
when a process first reads rows of a shard. Layout from mosaicml-streaming 0.13, `base/format/mds`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import BaseModel, Field, ValidationError

from voxray.config.errors import InputError
from voxray.core.task import BadRow
from voxray.data.formats.flat.mds_values import decode, fixed_size, refused
from voxray.data.formats.flat.packed import PACKINGS, unpack
from voxray.data.formats.flat.source import FlatFile, FlatRow
from voxray.data.formats.folder import find_files
from voxray.data.formats.rows import first_line

INDEX = "index.json"
_U4 = np.dtype("<u4")


class _File(BaseModel):
    basename: str
    bytes: int = Field(ge=0)
    hashes: dict[str, str] = {}


class _Shard(BaseModel):
    format: Literal["mds"]
    version: Literal[2]
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]
    compression: str | None = None
    raw_data: _File
    zip_data: _File | None = None
    samples: int = Field(ge=0)


class _Index(BaseModel):
    version: Literal[2]
    shards: list[_Shard]


@dataclass(frozen=True)
class StoredFile:
    """A shard's file: size in bytes and hashes (algorithm, hex) as the index says, and those after unpacking.

    `packing` is empty or one of PACKINGS.
    """

    path: str
    num_bytes: int
    hashes: tuple[tuple[str, str], ...]
    packing: str
    raw_bytes: int
    raw_hashes: tuple[tuple[str, str], ...]


def find_mds(source: Path) -> Iterator[FlatFile]:
    """Yield the shards of every `index.json` below a folder; one that a merged index lists too comes once.

    Raises InputError where there is no index, or one is damaged or leads out of the folder.
    """
    indices = find_files(source, INDEX)
    if not indices:
        raise InputError(f"'{source}' holds no {INDEX}; name the folder that the MDS writer wrote")
    seen: set[Path] = set()
    for path in sorted(indices, key=lambda path: (len(path.parts), path)):
        for number, shard in enumerate(_read_index(path).shards):
            place = path.parent / shard.raw_data.basename
            _check_shard(source, path, number, shard)
            if place not in seen:
                seen.add(place)
                yield _mds_file(source, path.parent, shard)


def _read_index(path: Path) -> _Index:
    try:
        return _Index.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(
            f"'{path}': {place}: {first['msg']}; an index of MDS version 2 is needed, fetch it again"
        ) from None


def _check_shard(source: Path, index: Path, number: int, shard: _Shard) -> None:
    """Raise InputError for an entry of the index that contradicts itself or leads out of `source`."""
    where = f"'{index}' shard {number}"
    if not len(shard.column_names) == len(shard.column_encodings) == len(shard.column_sizes):
        raise InputError(f"{where}: its columns' names, encodings and sizes differ in number; fetch it again")
    if len(set(shard.column_names)) < len(shard.column_names):
        raise InputError(f"{where}: two columns have the same name; write the dataset again")
    for name, encoding, size in zip(
        shard.column_names, shard.column_encodings, shard.column_sizes, strict=True
    ):
        if not refused(encoding) and (size or None) != fixed_size(encoding):
            raise InputError(f"{where}: column '{name}' ({encoding}) has the size {size}; fetch it again")
    for file in (shard.raw_data, shard.zip_data):
        if file is None:
            continue
        name = PurePosixPath(file.basename)
        inside = (index.parent / name).resolve().is_relative_to(source.resolve())
        if name.is_absolute() or ".." in name.parts or "\\" in file.basename or not inside:
            raise InputError(f"{where}: '{file.basename}' leads out of the folder and is not read")
        for algorithm in file.hashes:
            _hasher(algorithm)


def _mds_file(source: Path, folder: Path, shard: _Shard) -> "MdsShard":
    path, packing, stored = folder / shard.raw_data.basename, "", shard.raw_data
    if not path.is_file() and shard.zip_data is not None:
        path, stored = folder / shard.zip_data.basename, shard.zip_data
        packing = (shard.compression or "").partition(":")[0]
        if packing not in PACKINGS:
            raise InputError(
                f"'{path}' is packed as '{shard.compression}', which is not read; unpack it beside the index"
            )
    file = StoredFile(
        str(path),
        stored.bytes,
        tuple(stored.hashes.items()),
        packing,
        shard.raw_data.bytes,
        tuple(shard.raw_data.hashes.items()),
    )
    name = (folder / shard.raw_data.basename).relative_to(source).as_posix()
    columns = zip(shard.column_names, shard.column_encodings, shard.column_sizes, strict=True)
    return MdsShard(name, file, shard.samples, tuple((n, e, size or 0) for n, e, size in columns))


@dataclass(frozen=True)
class MdsShard(FlatFile):
    """One shard: columns (name, encoding, fixed size or 0). An entry of a JSON column is `column/entry`."""

    name: str
    file: StoredFile
    num_rows: int
    columns: tuple[tuple[str, str, int], ...]

    def names(self) -> list[str]:
        """Return the columns, and the entries of the first sample's JSON objects."""
        inside: list[str] = []
        json_columns = [name for name, encoding, _ in self.columns if encoding == "json"]
        if json_columns and self.num_rows:
            with _as_input_error(self):
                first = self._values(_open(self, False), 0, json_columns)
            for name, value in first.items():
                inside += [f"{name}/{entry}" for entry in value] if isinstance(value, dict) else []
        return [*(name for name, _, _ in self.columns), *inside]

    def rows(self, small: Sequence[str], used: Sequence[str]) -> Iterator[FlatRow | BadRow]:
        """Yield every sample; see FlatFile."""
        encodings = {name: encoding for name, encoding, _ in self.columns}
        problems = [
            f"'{self.file.path}': column '{name}' {problem}"
            for name in used
            if (problem := refused(encodings[_outer(name, encodings)]))
        ]
        if problems:
            raise InputError(*problems)
        with _as_input_error(self):
            content = _open(self, False)
        for index in range(self.num_rows):
            origin = f"{self.name} sample {index}"
            try:
                values = self._values(content, index, small)
            except ValueError as error:
                yield BadRow(origin, first_line(error))
                continue
            yield FlatRow(index, f"{self.name.removesuffix('.mds')}/{index:08d}", origin, values)

    def read(self, place: int, names: Sequence[str]) -> dict[str, Any]:
        """Return one sample's values. The shard's hashes are checked once per process."""
        return self._values(_open(self, True), place, names)

    def _values(self, content: np.ndarray, index: int, names: Sequence[str]) -> dict[str, Any]:
        """Decode the columns `names` of one sample; the others' bytes are passed over."""
        start, end = content[4 + 4 * index : 12 + 4 * index].view(_U4).tolist()
        num_sizes = sum(not size for _, _, size in self.columns)
        place = start + 4 * num_sizes
        if place > end:
            raise ValueError("its sample is cut off; fetch the shard again")
        sizes = iter(content[start:place].view(_U4).tolist())
        known = [name for name, _, _ in self.columns]
        wanted = {_outer(name, known) for name in names}
        found: dict[str, Any] = {}
        for name, encoding, size in self.columns:
            stop = place + (size or next(sizes))
            if stop > end:
                raise ValueError(f"column '{name}' goes on after its sample; fetch the shard again")
            if name in wanted:
                try:
                    found[name] = decode(encoding, content[place:stop].tobytes())
                except ValueError as error:
                    raise ValueError(f"column '{name}' {error}") from error
            place = stop
        return {name: _pick(found, name) for name in names}


def _outer(name: str, columns: Sequence[str] | dict[str, str]) -> str:
    return name if name in columns else name.partition("/")[0]


def _pick(found: dict[str, Any], name: str) -> Any:
    if name in found:
        return found[name]
    outer, _, entry = name.partition("/")
    value = found[outer]
    if not isinstance(value, dict) or entry not in value:
        raise ValueError(f"column '{outer}' has no '{entry}' here; add it, or remove the sample")
    return value[entry]


# --- one shard's bytes
# ----------------------------------------------------------------------------------------------------------


def _open(shard: MdsShard, check: bool) -> np.ndarray:
    """Return a shard's bytes, mapped or unpacked, with its table of offsets checked, and hashes if asked.

    Raises ValueError or OSError.
    """
    content, problem = _opened(shard, check)
    if problem:
        raise ValueError(problem)
    return content


@lru_cache(maxsize=4)
def _opened(shard: MdsShard, check: bool) -> tuple[np.ndarray, str]:
    """Return the bytes and what is wrong with them, which is found only once."""
    file = shard.file
    size = os.stat(file.path).st_size
    content = np.memmap(file.path, np.uint8, "r") if size else np.empty(0, np.uint8)
    try:
        if size != file.num_bytes:
            raise ValueError(f"it has {size:,} bytes, the index says {file.num_bytes:,}; fetch it again")
        if check or file.packing:
            _check_hashes(content, file.hashes)
        if file.packing:
            content = np.frombuffer(unpack(file.packing, content, file.raw_bytes), np.uint8)
            _check_hashes(content, file.raw_hashes)
        _check_offsets(content, shard.num_rows)
    except ValueError as error:
        return np.empty(0, np.uint8), str(error)
    return content, ""


def _check_offsets(content: np.ndarray, num_rows: int) -> None:
    head = 4 + 4 * (num_rows + 1)
    if len(content) < head or content[:4].view(_U4)[0] != num_rows:
        raise ValueError("its head does not fit the index; fetch it again")
    offsets = content[4:head].view(_U4)
    if offsets[0] < head or (offsets[1:] < offsets[:-1]).any() or offsets[-1] != len(content):
        raise ValueError("its table of offsets is damaged; fetch it again")


def _check_hashes(content: np.ndarray, hashes: Sequence[tuple[str, str]]) -> None:
    for algorithm, expected in hashes:
        hasher = _hasher(algorithm)
        hasher.update(content)
        if hasher.hexdigest() != expected:
            raise ValueError(f"its {algorithm} is not the one that the index gives; fetch it again")


def _hasher(algorithm: str) -> Any:
    """Return a new hash object; mosaicml-streaming takes hashlib's and xxhash's names."""
    if algorithm in xxhash.algorithms_available:
        return getattr(xxhash, algorithm)()
    if algorithm in hashlib.algorithms_available and not algorithm.startswith("shake_"):
        return hashlib.new(algorithm, usedforsecurity=False)
    raise InputError(f"{INDEX}: '{algorithm}' is no hash that is known here; remove it from the index")


class _as_input_error:  # noqa: N801 - a context manager
    """Turns what `_open` and decoding raise into an InputError that names the shard."""

    def __init__(self, shard: MdsShard) -> None:
        self.path = shard.file.path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"'{self.path}' is missing; fetch it again") from error
        if isinstance(error, ValueError | OSError):
            raise InputError(f"'{self.path}': {first_line(error)}") from error
