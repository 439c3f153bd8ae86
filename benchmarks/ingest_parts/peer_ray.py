"""Ray Data as its guides write it: `read_parquet` → `iter_torch_batches` with a local shuffle.

https://docs.ray.io/en/latest/data/shuffling-data.html ("local shuffle buffer …
`iter_torch_batches(batch_size, local_shuffle_buffer_size)`"),
https://docs.ray.io/en/latest/train/user-guides/data-loading-preprocessing.html (`prefetch_batches`) and
https://docs.ray.io/en/latest/data/working-with-tensors.html: tensors in Ray's own tensor types in
uncompressed Parquet, row groups of about 32 MB. Trials are padded in `collate_fn`, images decoded by
`map_batches`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

from ingest_parts.measure import Delivered, Way
from ingest_parts.modalities import Modality, decode_batch, pad

_ROW_GROUP_BYTES = 32_000_000
_BUFFER_ROWS, _BUFFER_BYTES = 1_000, 1 << 30


def ways(modality: Modality, folder: Path) -> list[Way]:
    """Write the Parquet files and return the way to read them."""
    path = folder / "parquet"
    path.mkdir()
    per_file = modality.rows_per_shard
    per_group = max(1, per_file * _ROW_GROUP_BYTES // modality.shard_bytes)
    for start in range(0, modality.num_rows, per_file):
        rows = [modality.row(i) for i in range(start, min(start + per_file, modality.num_rows))]
        table = pa.table({name: _column([row[name] for row in rows]) for name in modality.stored})
        file = path / f"{start:08d}.parquet"
        pq.write_table(
            table,
            file,
            row_group_size=min(per_group, len(rows)),
            compression="none",
            # Parquet knows no 8-bit numbers: a dictionary of 256 keeps grey levels at a byte instead of four.
            use_dictionary=modality.dtype == "uint8",
        )
    return [_way(modality, path)]


def _column(values: list[Any]) -> pa.Array:
    if isinstance(values[0], int):
        return pa.array(values, pa.int64())
    if isinstance(values[0], bytes):
        return pa.array(values, pa.large_binary())
    if len({value.shape for value in values}) > 1:
        return ArrowVariableShapedTensorArray.from_numpy(np.array(values, dtype=object))
    return ArrowTensorArray.from_numpy(np.stack(values))


class PaddedTrials(NumpyBatchCollateFn):
    """Arrays of one batch → tensors, trials padded."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Return `number` [B], `x` [B, T_max, C] and `length` [B]."""
        padded, lengths = pad(list(batch["x"]))
        return {
            "number": torch.tensor(batch["number"]),
            "x": torch.from_numpy(padded),
            "length": torch.from_numpy(lengths),
        }


def _way(modality: Modality, path: Path) -> Way:
    row_bytes = modality.delivered_bytes / modality.num_rows

    def epoch(number: int) -> Iterator[Delivered]:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.read_parquet(str(path))
        if modality.jpeg_folder is not None:
            rows = rows.map_batches(decode_batch, batch_size=modality.batch_size)
        yield from rows.iter_torch_batches(
            batch_size=modality.batch_size,
            prefetch_batches=2,
            local_shuffle_buffer_size=min(_BUFFER_ROWS, int(_BUFFER_BYTES / row_bytes)),
            local_shuffle_seed=number,
            collate_fn=PaddedTrials() if modality.ragged else None,
        )

    return Way("Ray Data as its guide writes it", path, epoch)
