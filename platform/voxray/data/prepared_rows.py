"""The rows of shards that were just written, gathered from the maps by their number over all shards."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from voxray.data.manifest import ShardInfo
from voxray.data.reader import ShardReader


class ShardRows:
    """The rows of some shards of one split; see `PreparedRows`. Windows are checked at their first use."""

    def __init__(self, folder: Path, shards: Sequence[ShardInfo]) -> None:
        """Map the shards, whose names are relative to `folder`."""
        self._readers = [ShardReader(folder / shard.file, shard) for shard in shards]
        self._starts = np.cumsum([0, *(reader.num_rows for reader in self._readers)])

    def __len__(self) -> int:
        """Return the rows of all shards."""
        return int(self._starts[-1])

    def column(self, name: str) -> np.ndarray:
        """Return a whole column, rows first."""
        parts = [reader.take(np.arange(reader.num_rows), [name])[name] for reader in self._readers]
        return np.concatenate(parts) if parts else np.empty(0)

    def take(self, rows: Sequence[int] | np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return columns of some rows, in the order that is asked for."""
        rows = np.asarray(rows, np.int64)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        out: dict[str, np.ndarray] = {}
        for shard in np.unique(shard_of).tolist():
            (places,) = np.nonzero(shard_of == shard)
            taken = self._readers[shard].take(rows[places] - self._starts[shard], names)
            for name, values in taken.items():
                if name not in out:
                    out[name] = np.empty((len(rows), *values.shape[1:]), values.dtype)
                out[name][places] = values
        return out
