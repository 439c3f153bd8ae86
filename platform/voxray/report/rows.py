"""Fetches rows of a dataset's shards by sample id, without Ray: a report shows a few images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.data.manifest import load_manifest
from voxray.data.reader import ShardError, ShardReader


class Rows:
    """The rows of one split; called with sample ids it returns all their columns, in the order of the ids."""

    def __init__(self, dataset: Path, split: str) -> None:
        """Look up where each sample lies. Raises InputError when the dataset cannot be read."""
        self._dataset, self._split = dataset, split
        manifest = load_manifest(dataset)
        name = manifest.schema.sample_id
        self._place: dict[str, tuple[ShardReader, int]] = {}
        for shard in manifest.shards_of(split):
            reader = ShardReader(dataset / shard.file, shard)
            for row, sample in enumerate(_ids(dataset / shard.file, name)):
                self._place[sample] = reader, row

    @property
    def sample_ids(self) -> Sequence[str]:
        """The ids of all rows, in the order of the shards."""
        return list(self._place)

    def __call__(self, sample_ids: Sequence[str], /) -> Mapping[str, np.ndarray]:
        """Return the columns of rows. Raises InputError for a sample that the split lacks, ShardError for a
        damaged one.
        """
        missing = [sample for sample in sample_ids if sample not in self._place]
        if missing:
            raise InputError(
                f"'{missing[0]}' was evaluated but is not in the split '{self._split}' of {self._dataset}; "
                "evaluate the run again on this dataset"
            )
        places = [self._place[sample] for sample in sample_ids]
        rows = [reader.take(np.array([row])) for reader, row in places]
        return {column: np.concatenate([row[column] for row in rows]) for column in rows[0]} if rows else {}


def open_rows(dataset: Path, split: str) -> Rows:
    """Return the rows of a split. Raises InputError when the dataset cannot be read."""
    return Rows(dataset, split)


def _ids(shard: Path, name: str) -> list[str]:
    """Return a shard's sample ids. Their windows are not checked, as that reads every image: whoever takes a
    row has its window checked then.
    """
    reader = ShardReader(shard)
    try:
        return [str(sample) for sample in reader.take(np.arange(reader.num_rows), [name])[name]]
    except UnicodeDecodeError as error:
        raise ShardError(f"shard '{shard}' is damaged ({error}); see `voxray data verify`") from None
