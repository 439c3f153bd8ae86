"""`manifest.json` of a dataset: what its shards hold, how they were made, what their training rows look like.

It is written last and fsynced: a folder without a valid manifest is not a dataset.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS, Schema
from voxray.data.store import Store

FILE_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.jsonl"
SHARD_FOLDER = "shards"
INDEX_FOLDER = "index"
VERSION = 2

# A shard's name never leads out of the dataset's folder.
_SHARD_FILE = re.compile(rf"{SHARD_FOLDER}/[A-Za-z0-9_][A-Za-z0-9_.-]*\.arrow")


@dataclass(frozen=True)
class Window:
    """A piece of a shard that is checked as one: where its rows and bytes end, and its bytes' xxh3-128.

    A window is one record batch; the last one holds no rows: it is the file's footer.
    """

    end_row: int
    end_byte: int
    xxh3: str


@dataclass(frozen=True)
class ShardInfo:
    """One shard: `file` is relative to the dataset's folder, `sha256` is of the whole file, in hex.

    `index_xxh3` is the hash of its index file.
    """

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str
    windows: tuple[Window, ...]
    index_xxh3: str

    @property
    def index_file(self) -> str:
        """The index of this shard's rows."""
        return INDEX_FOLDER + self.file.removeprefix(SHARD_FOLDER)


@dataclass(frozen=True)
class SplitCounts:
    """Rows and groups (patients, sessions) of one split."""

    rows: int
    groups: int


@dataclass(frozen=True)
class Source:
    """The raw folder as it was named, and a hash of its files' names, sizes and tables."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class Recipe:
    """What made the shards: the task, voxray's version, all values of `data.prepare`, its seed included.

    `networks` are the frozen networks whose outputs are columns, as `data/embed_cache.py` tells them apart.
    """

    task: str
    voxray: str
    prepare: dict[str, Any]
    networks: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A dataset. `statistics` holds, per column, what `data/statistics.py` says about the training rows."""

    schema: Schema
    shards: tuple[ShardInfo, ...]
    counts: dict[str, SplitCounts]
    statistics: dict[str, Any]
    source: Source
    recipe: Recipe
    num_quarantined: int = 0
    version: int = field(default=VERSION)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold rows, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.counts)

    def shards_of(self, split: str) -> tuple[ShardInfo, ...]:
        """Return the shards of one split in their fixed order. Raises InputError where it is not there."""
        if split not in self.counts:
            raise InputError(f"the dataset has no split '{split}'; it has: {', '.join(self.splits)}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_rows(self, split: str) -> int:
        """Return the rows of one split. Raises InputError for a split that is not there."""
        return sum(shard.rows for shard in self.shards_of(split))


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def load_manifest(dataset: Path | str | Store) -> Manifest:
    """Read and check `manifest.json` of a dataset's folder.

    That of a URL is read once per process: all trials of an actor see one dataset. Raises InputError when the
    folder holds no dataset, or a manifest that this version cannot read.
    """
    store = Store.of(dataset)
    return _read(store) if store.is_local else _read_once(store)


@lru_cache(maxsize=16)
def _read_once(store: Store) -> Manifest:
    return _read(store)


def _read(store: Store) -> Manifest:
    path = store.describe(FILE_NAME)
    if store.is_local and not store.path(FILE_NAME).is_file():
        raise InputError(
            f"'{store.location}' is no dataset: it has no {FILE_NAME}; "
            "`voxray data prepare TASK RAW OUT` makes one"
        )
    text = store.read(FILE_NAME)
    _check_version(path, text)
    try:
        manifest = _adapter().validate_json(text)
    except ValidationError as error:
        places = (f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in error.errors()[:20])
        raise InputError(*(f"{path}: {place}; prepare the dataset again" for place in places)) from None
    _check_consistency(path, manifest)
    return manifest


def write_manifest(dataset: Path, manifest: Manifest) -> None:
    """Write `manifest.json` and fsync it and its folder: the last thing that makes a folder a dataset."""
    path = dataset / FILE_NAME
    with path.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(dataset)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_version(path: str, text: bytes) -> None:
    try:
        version = json.loads(text)["version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no manifest of voxray; prepare the dataset again") from None
    if version != VERSION:
        raise InputError(
            f"{path} has version {version}, this voxray reads {VERSION}; prepare the dataset again"
        )


def _check_consistency(path: str, manifest: Manifest) -> None:
    problems = [
        f"{path}: '{s.file}' is no name of a shard"
        for s in manifest.shards
        if not _SHARD_FILE.fullmatch(s.file)
    ]
    for name in (manifest.schema.sample_id, manifest.schema.group):
        if name not in manifest.schema.columns:
            problems.append(f"{path}: the schema has no column '{name}'")
    for shard in manifest.shards:
        ends = [(window.end_row, window.end_byte) for window in shard.windows]
        if ends != sorted(ends) or not ends or ends[-1] != (shard.rows, shard.bytes):
            problems.append(f"{path}: the windows of '{shard.file}' do not end where it does")
    for split in {shard.split for shard in manifest.shards} | set(manifest.counts):
        rows = sum(shard.rows for shard in manifest.shards if shard.split == split)
        counted = manifest.counts[split].rows if split in manifest.counts else 0
        if rows != counted or split not in SPLITS:
            problems.append(f"{path}: split '{split}' has {rows} rows in its shards but counts {counted}")
    if problems:
        raise InputError(*(f"{problem}; prepare the dataset again" for problem in problems))
