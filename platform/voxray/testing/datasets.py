"""Write a prepared dataset straight from arrays, without raw files and without Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.schema import Schema
from voxray.data.manifest import (
    SHARD_FOLDER,
    Manifest,
    Recipe,
    ShardInfo,
    Source,
    SplitCounts,
    write_manifest,
)
from voxray.data.shards import write_shard


def write_dataset(
    out: Path,
    schema: Schema,
    splits: Mapping[str, dict[str, np.ndarray]],
    rows_per_shard: int,
    statistics: dict[str, Any] | None = None,
) -> Path:
    """Write `splits` (columns, rows first) as shards of `rows_per_shard` rows, and the manifest."""
    (out / SHARD_FOLDER).mkdir(parents=True)
    shards: list[ShardInfo] = []
    for split, columns in splits.items():
        num_rows = len(columns[schema.sample_id])
        for index, start in enumerate(range(0, num_rows, rows_per_shard)):
            stop = min(start + rows_per_shard, num_rows)
            rows = ({name: values[i] for name, values in columns.items()} for i in range(start, stop))
            info = write_shard(out / SHARD_FOLDER / f"{split}-{index:05d}.arrow", rows, schema, split)
            assert info is not None
            shards.append(info)
    counts = {
        split: SplitCounts(len(columns[schema.sample_id]), len(set(columns[schema.group])))
        for split, columns in splits.items()
    }
    recipe = Recipe("arrays", "0", {})
    write_manifest(
        out, Manifest(schema, tuple(shards), counts, statistics or {}, Source("arrays", ""), recipe)
    )
    return out
