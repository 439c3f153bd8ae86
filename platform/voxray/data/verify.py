"""Whether a dataset is what its manifest says: every byte, every row, no group in two splits."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.data.manifest import FILE_NAME, QUARANTINE_NAME, SHARD_FOLDER, Manifest, ShardInfo, load_manifest
from voxray.data.shards import ShardReader, open_shard


def verify(dataset: Path) -> list[str]:
    """Return every problem of a dataset's folder, a sentence each; none when it is whole.

    Raises InputError when there is no manifest that can be read.
    """
    dataset = Path(dataset)
    manifest = load_manifest(dataset)
    problems = list(_extra_files(dataset, manifest))
    ids = _Ids(manifest)
    for shard in manifest.shards:
        found = list(_file_problems(dataset, shard))
        problems += found
        if not found:  # the rows of a damaged file mean nothing
            problems += _row_problems(dataset, manifest, shard, ids)
    return problems + list(ids.problems())


def _extra_files(dataset: Path, manifest: Manifest) -> Iterator[str]:
    known = {FILE_NAME, QUARANTINE_NAME, *(shard.file for shard in manifest.shards)}
    for path in sorted(dataset.rglob("*")):
        name = path.relative_to(dataset).as_posix()
        if name not in known and name != SHARD_FOLDER:
            yield f"'{name}' is not in the manifest; remove it"


def _file_problems(dataset: Path, shard: ShardInfo) -> Iterator[str]:
    path = dataset / shard.file
    if not path.is_file():
        yield f"shard '{shard.file}' is missing; prepare the dataset again"
        return
    if (size := path.stat().st_size) != shard.bytes:
        yield f"shard '{shard.file}' has {size} bytes instead of {shard.bytes}; prepare the dataset again"
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        yield f"shard '{shard.file}' is damaged: its sha256 is not the manifest's; prepare the dataset again"


def _row_problems(dataset: Path, manifest: Manifest, shard: ShardInfo, ids: "_Ids") -> Iterator[str]:
    try:
        reader = open_shard(dataset / shard.file)
    except InputError as error:
        yield str(error)
        return
    if reader.columns != dict(manifest.schema.columns):
        yield f"shard '{shard.file}' has other columns than the manifest's schema; prepare the dataset again"
        return
    if reader.num_rows != shard.rows:
        yield f"shard '{shard.file}' has {reader.num_rows} rows, the manifest says {shard.rows}"
    ids.add(shard, reader)


class _Ids:
    """Sample ids and groups over all shards."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._shard_of_sample: dict[str, str] = {}
        self._splits_of_group: dict[str, set[str]] = {}
        self._repeated: list[str] = []

    def add(self, shard: ShardInfo, reader: ShardReader) -> None:
        schema = self._manifest.schema
        columns = reader.take(np.arange(reader.num_rows), [schema.sample_id, schema.group])
        for name in columns[schema.sample_id]:
            if (other := self._shard_of_sample.setdefault(name, shard.file)) != shard.file:
                self._repeated.append(f"sample '{name}' is in '{other}' and in '{shard.file}'")
        for name, count in zip(*np.unique(columns[schema.sample_id], return_counts=True), strict=True):
            if count > 1:
                self._repeated.append(f"sample '{name}' is {count} times in '{shard.file}'")
        for name in set(columns[schema.group]):
            self._splits_of_group.setdefault(name, set()).add(shard.split)

    def problems(self) -> Iterator[str]:
        for repeated in self._repeated:
            yield f"{repeated}; sample ids must be unique"
        group = self._manifest.schema.group
        for name, splits in sorted(self._splits_of_group.items()):
            if len(splits) > 1:
                yield f"{group} '{name}' leaks across the splits {', '.join(sorted(splits))}; prepare again"
        for split, counts in self._manifest.counts.items():
            groups = sum(split in splits for splits in self._splits_of_group.values())
            if groups != counts.groups and not self._incomplete(split):
                yield f"split '{split}' has {groups} groups, the manifest says {counts.groups}"

    def _incomplete(self, split: str) -> bool:
        """Whether rows of the split could not be read: another problem has told of them."""
        seen = set(self._shard_of_sample.values())
        return any(shard.file not in seen for shard in self._manifest.shards_of(split))
