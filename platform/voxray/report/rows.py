"""Fetches rows of a dataset's shards by sample id, without Ray: a report shows a few images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.data.manifest import load_manifest
from voxray.data.reader import ShardReader

Take = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


def open_rows(dataset: Path, split: str) -> Take:
    """Return a function that fetches all columns for sample ids of `split`, in their order.

    Raises InputError when the dataset cannot be read or, at the call, lacks a sample.
    """
    manifest = load_manifest(dataset)
    readers = [ShardReader(dataset / shard.file, shard) for shard in manifest.shards_of(split)]
    name = manifest.schema.sample_id
    place: dict[str, tuple[ShardReader, int]] = {}
    for reader in readers:
        ids = reader.take(np.arange(reader.num_rows), [name])[name]
        place |= {str(sample): (reader, row) for row, sample in enumerate(ids)}

    def take(sample_ids: Sequence[str]) -> Mapping[str, np.ndarray]:
        missing = [sample for sample in sample_ids if sample not in place]
        if missing:
            raise InputError(
                f"'{missing[0]}' was evaluated but is not in the split '{split}' of {dataset}; "
                "evaluate the run again on this dataset"
            )
        rows = [place[sample][0].take(np.array([place[sample][1]])) for sample in sample_ids]
        return {column: np.concatenate([row[column] for row in rows]) for column in rows[0]} if rows else {}

    return take
