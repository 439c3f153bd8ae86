"""Whether a dataset is what its manifest says: every byte, every row, nothing that two splits share.

Rows are read in pieces and remembered as 128-bit hashes, 72 bytes a row; names are read again when there is
something to tell.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from voxray.config.errors import InputError
from voxray.core.schema import BYTES, TEXT, Schema
from voxray.data.index import LENGTH, ShardIndex, index_columns
from voxray.data.manifest import (
    FILE_NAME,
    INDEX_FOLDER,
    QUARANTINE_NAME,
    SHARD_FOLDER,
    Manifest,
    ShardInfo,
    load_manifest,
)
from voxray.data.reader import ShardReader
from voxray.data.store import Store

MAX_SHOWN = 20  # of a kind
_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Findings:
    """What is wrong with a dataset, and what its user may want to know; a sentence each."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def verify(dataset: Path) -> list[str]:
    """Return every problem of a dataset's folder; none when it is whole. Raises as `examine` does."""
    return list(examine(dataset).problems)


def examine(dataset: Path) -> Findings:
    """Check files, hashes, columns, counts, indexes, sample ids, groups and repeated content.

    Raises InputError when there is no manifest that can be read.
    """
    dataset = Path(dataset)
    manifest = load_manifest(dataset)
    problems = list(_extra_files(dataset, manifest))
    rows = _Rows(dataset, manifest)
    for number, shard in enumerate(manifest.shards):
        found = list(_file_problems(dataset, shard))
        if not found:  # the rows of a damaged file mean nothing
            found = list(rows.add(number))
        problems += found
    shared, notes = rows.repeated_content()
    problems += [*rows.repeated_ids(), *rows.leaking_groups(), *rows.wrong_counts(), *shared]
    return Findings(tuple(problems), tuple(notes))


def content_columns(schema: Schema) -> list[str]:
    """Return the columns that say what a row shows: encoded bytes and tensors, not scalars, not labels."""
    return [
        name
        for name, column in schema.columns.items()
        if column.dtype == BYTES or (column.is_tensor and column.shape and not column.names)
    ]


# --- files
# -----------------------------------------------------------------------------------------------------------


def _extra_files(dataset: Path, manifest: Manifest) -> Iterator[str]:
    known = {FILE_NAME, QUARANTINE_NAME, SHARD_FOLDER, INDEX_FOLDER}
    known |= {file for shard in manifest.shards for file in (shard.file, shard.index_file)}
    for path in sorted(dataset.rglob("*")):
        if (name := path.relative_to(dataset).as_posix()) not in known:
            yield f"'{name}' is not in the manifest; remove it"


def _file_problems(dataset: Path, shard: ShardInfo) -> Iterator[str]:
    path, index = dataset / shard.file, dataset / shard.index_file
    if not path.is_file():
        yield f"shard '{shard.file}' is missing; prepare the dataset again"
        return
    if (size := path.stat().st_size) != shard.bytes:
        yield f"shard '{shard.file}' has {size} bytes instead of {shard.bytes}; prepare the dataset again"
        return
    yield from _hash_problems(path, shard)
    if not index.is_file():
        yield f"index '{shard.index_file}' is missing; prepare the dataset again"
    elif xxhash.xxh3_128_hexdigest(index.read_bytes()) != shard.index_xxh3:
        yield (
            f"index '{shard.index_file}' is damaged: its hash is not the manifest's; "
            "prepare the dataset again"
        )


def _hash_problems(path: Path, shard: ShardInfo) -> Iterator[str]:
    """Check the whole file's hash and its windows', in one pass."""
    digest, start_row = hashlib.sha256(), 0
    damaged: list[str] = []
    with path.open("rb") as file:
        for window in shard.windows:
            piecewise = xxhash.xxh3_128()
            while left := window.end_byte - file.tell():
                piece = file.read(min(left, _PIECE_BYTES))
                digest.update(piece)
                piecewise.update(piece)
            if piecewise.hexdigest() != window.xxh3:
                last = window.end_row - 1
                damaged.append(f"rows {start_row} to {last}" if last >= start_row else "its footer")
            start_row = window.end_row
    if digest.hexdigest() != shard.sha256:
        where = f" in {', '.join(damaged[:3])}" if damaged else ""
        yield (
            f"shard '{shard.file}' is damaged{where}: its sha256 is not the manifest's; "
            "prepare the dataset again"
        )
    elif damaged:
        yield (
            f"shard '{shard.file}': the manifest's hashes of {', '.join(damaged[:3])} are not the file's; "
            "prepare the dataset again"
        )


# --- rows
# -----------------------------------------------------------------------------------------------------------


class _Hashes:
    """A 128-bit hash for some rows of each shard: 24 bytes a row."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._places: list[np.ndarray] = []

    def add(self, first: int, hashes: Sequence[bytes]) -> None:
        """Take the hashes of rows that follow each other, numbered over all shards; b"" leaves one out."""
        kept = [place for place, value in enumerate(hashes) if value]
        self._hashes.append(np.array([hashes[place] for place in kept], dtype="S16"))
        self._places.append(first + np.array(kept, dtype=np.int64))

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return hashes, sorted, and their rows; equal ones in the rows' order."""
        hashes = np.concatenate([np.empty(0, "S16"), *self._hashes])
        places = np.concatenate([np.empty(0, np.int64), *self._places])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], places[order]

    def repeated(self) -> Iterator[np.ndarray]:
        """Yield the rows of each hash that several rows have, by their first rows."""
        hashes, places = self.all()
        (starts,) = np.nonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])
        stops = np.r_[starts[1:], len(hashes)][: len(starts)]
        several = stops - starts > 1
        for start, stop in sorted(
            zip(starts[several].tolist(), stops[several].tolist(), strict=True),
            key=lambda bounds: places[bounds[0]],
        ):
            yield places[start:stop]


class _Rows:
    """What all rows have in common and must not."""

    def __init__(self, dataset: Path, manifest: Manifest) -> None:
        self._dataset, self._manifest, self._schema = dataset, manifest, manifest.schema
        self._index = ShardIndex(Store.of(dataset), manifest, manifest.shards)
        self._ends = np.cumsum([shard.rows for shard in manifest.shards])
        self._split_of_shard = np.array([shard.split for shard in manifest.shards])
        self._content = content_columns(manifest.schema)
        self._ids, self._groups, self._shown = _Hashes(), _Hashes(), _Hashes()
        self._read: set[int] = set()

    def add(self, number: int) -> Iterator[str]:
        """Read a shard's rows; yield what is wrong with the shard itself."""
        shard = self._manifest.shards[number]
        again = "prepare the dataset again"
        try:
            reader = ShardReader(self._dataset / shard.file)
        except InputError as error:
            yield str(error)
            return
        if reader.columns != dict(self._schema.columns):
            yield f"shard '{shard.file}' has other columns than the manifest's schema; {again}"
            return
        if reader.num_rows != shard.rows:
            yield f"shard '{shard.file}' has {reader.num_rows} rows, the manifest says {shard.rows}; {again}"
            return
        self._read.add(number)
        wrong: set[str] = set()
        for start, stop in row_pieces(shard):
            rows = np.arange(start, stop)
            wrong |= set(self._other_in_index(number, reader, rows))
            self._remember(reader, rows, int(self._ends[number]) - shard.rows + start)
        for name in sorted(wrong):
            yield f"index '{shard.index_file}' differs from its shard in '{name}'; {again}"

    def _remember(self, reader: ShardReader, rows: np.ndarray, first: int) -> None:
        ids = reader.take(rows, [self._schema.sample_id, self._schema.group])
        for hashes, name in ((self._ids, self._schema.sample_id), (self._groups, self._schema.group)):
            hashes.add(first, [xxhash.xxh3_128_digest(str(value).encode()) for value in ids[name]])
        if self._content:
            columns = reader.take(rows, self._content)
            self._shown.add(first, [_content_hash(columns, row) for row in range(len(rows))])

    def _other_in_index(self, number: int, reader: ShardReader, rows: np.ndarray) -> Iterator[str]:
        """Yield the index's columns that are not what the rows say."""
        for name, column in index_columns(self._schema).items():
            source = name.removesuffix(LENGTH)
            values = reader.take(rows, [source])[source]
            if name != source:
                values = np.array([len(value) for value in values])
            try:
                there = self._index.column(number, name)[rows]
            except (KeyError, IndexError, ValueError, pa.ArrowInvalid):
                yield name
                continue
            floating = column.dtype != TEXT and np.dtype(column.dtype).kind == "f"
            if not np.array_equal(values, there, equal_nan=floating):
                yield name

    # --- what they say together
    def repeated_ids(self) -> list[str]:
        """Return a problem for each sample id that comes twice."""
        return _told(list(self._ids.repeated()), self._repeated_id, "sample ids that come several times")

    def _repeated_id(self, rows: np.ndarray) -> str:
        files = [self._shard(row).file for row in rows.tolist()]
        name = self._name(int(rows[0]), self._schema.sample_id)
        others = [file for file in files if file != files[0]]
        where = f"in '{files[0]}' and in '{others[0]}'" if others else f"{len(files)} times in '{files[0]}'"
        return f"sample '{name}' is {where}; sample ids must be unique"

    def leaking_groups(self) -> list[str]:
        """Return a problem for each group that stands in several splits."""
        leaking = [rows for rows in self._groups.repeated() if len(self._splits(rows)) > 1]
        return _told(leaking, self._leaking_group, "groups that leak")

    def _leaking_group(self, rows: np.ndarray) -> str:
        name = self._name(int(rows[0]), self._schema.group)
        splits = ", ".join(self._splits(rows))
        return f"{self._schema.group} '{name}' leaks across the splits {splits}; prepare again"

    def wrong_counts(self) -> Iterator[str]:
        """Yield a problem for each split that has not as many groups as the manifest says."""
        hashes, places = self._groups.all()
        shard_of = np.searchsorted(self._ends, places, side="right")
        for split, counts in self._manifest.counts.items():
            numbers = [n for n, shard in enumerate(self._manifest.shards) if shard.split == split]
            if not self._read.issuperset(numbers):
                continue  # rows that could not be read: another problem has told of them
            groups = len(np.unique(hashes[np.isin(shard_of, numbers)]))
            if groups != counts.groups:
                yield f"split '{split}' has {groups} groups, the manifest says {counts.groups}"

    def repeated_content(self) -> tuple[list[str], list[str]]:
        """Return a problem for each content that splits share, a note for each split that repeats some."""
        what = " and ".join(self._content)
        shared: list[np.ndarray] = []
        pair: dict[str, tuple[int, int]] = {}
        num: Counter[str] = Counter()
        for rows in self._shown.repeated():
            splits = self._split_of(rows)
            names, firsts, counts = np.unique(splits, return_index=True, return_counts=True)
            if len(names) > 1:
                shared.append(rows[np.sort(firsts)])
            for split, count in zip(names.tolist(), counts.tolist(), strict=True):
                if count > 1:
                    one, other = rows[splits == split][:2].tolist()
                    pair.setdefault(split, (one, other))
                    num[split] += count - 1
        notes = [
            f"split '{split}' repeats another row's {what} ({num[split]}×), e.g. {self._sample(other)} "
            f"that of {self._sample(one)}"
            for split, (one, other) in sorted(pair.items())
        ]
        return _told(shared, self._shared, f"rows that share their {what} with another split"), notes

    def _shared(self, rows: np.ndarray) -> str:
        named = [f"{self._sample(row)} ({self._shard(row).split})" for row in rows.tolist()]
        return (
            f"samples {' and '.join(named)} have the same {' and '.join(self._content)}, in {len(rows)} "
            f"splits; remove one from the raw data, or give both one {self._schema.group}"
        )

    # --- where a row stands
    def _split_of(self, rows: np.ndarray) -> np.ndarray:
        return self._split_of_shard[np.searchsorted(self._ends, rows, side="right")]

    def _splits(self, rows: np.ndarray) -> list[str]:
        return np.unique(self._split_of(rows)).tolist()

    def _sample(self, row: int) -> str:
        return f"'{self._name(row, self._schema.sample_id)}'"

    def _shard(self, row: int) -> ShardInfo:
        return self._manifest.shards[int(np.searchsorted(self._ends, row, side="right"))]

    def _name(self, row: int, column: str) -> str:
        number = int(np.searchsorted(self._ends, row, side="right"))
        shard = self._manifest.shards[number]
        local = np.array([row - int(self._ends[number]) + shard.rows])
        return str(ShardReader(self._dataset / shard.file).take(local, [column])[column][0])


def row_pieces(shard: ShardInfo) -> Iterator[tuple[int, int]]:
    """Yield bounds of runs of a shard's rows that have about 16 MiB together."""
    step = max(1, shard.rows * _PIECE_BYTES // max(1, shard.bytes))
    for start in range(0, shard.rows, step):
        yield start, min(start + step, shard.rows)


def _content_hash(columns: dict[str, np.ndarray], row: int) -> bytes:
    """Return xxh3-128 of one row's content; b"" where it has none, as a trial without a transcript."""
    digest, size = xxhash.xxh3_128(), 0
    for values in columns.values():
        value = values[row]
        data = (
            value if isinstance(value, bytes) else np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        )
        size += len(data)
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest() if size else b""


def _told(found: Sequence[np.ndarray], tell: Callable[[np.ndarray], str], what: str) -> list[str]:
    """Return the first MAX_SHOWN findings of a kind as sentences, and how many more there are."""
    more = [f"and {len(found) - MAX_SHOWN} more {what}"] * (len(found) > MAX_SHOWN)
    return [tell(rows) for rows in found[:MAX_SHOWN]] + more
