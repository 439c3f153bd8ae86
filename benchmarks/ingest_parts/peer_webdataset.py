"""WebDataset: tar shards in a local folder, with 0 and 2 workers.

Settings of https://webdataset.github.io/webdataset/ and https://github.com/webdataset/webdataset#readme:
shards shuffled, a shuffle buffer of 1,000 samples (as many as 1 GiB holds where they are larger), batches
made in the workers, tensors in its own `ten` coding, which reads faster than `npy`.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from ingest_parts.measure import Delivered, Way
from ingest_parts.modalities import Modality, decode_jpeg
from ingest_parts.peer_torch import collate_trials

_BUFFER_SAMPLES, _BUFFER_BYTES = 1_000, 1 << 30


def ways(modality: Modality, folder: Path) -> list[Way]:
    """Write the tars and return the two ways to load them."""
    path = folder / "tars"
    path.mkdir()
    with webdataset.ShardWriter(str(path / "%06d.tar"), maxsize=modality.shard_bytes, verbose=0) as writer:
        for row in modality.rows():
            writer.write(_sample(row))
    return [_way(path, modality, num_workers) for num_workers in (0, 2)]


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    sample = {"__key__": f"{row['number']:08d}", "number.ten": [np.array([row["number"]])]}
    if isinstance(row["x"], bytes):
        sample["x.bin"] = row["x"]  # an ending of its own: `decode` would decode .jpg at full size
    else:
        sample["x.ten"] = [row["x"]]
    if "y" in row:
        sample["y.ten"] = [row["y"]]
    return sample


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    x = decode_jpeg(sample["x.bin"]) if "x.bin" in sample else sample["x.ten"][0]
    row = {"number": int(sample["number.ten"][0][0]), "x": x}
    if "y.ten" in sample:
        row["y"] = sample["y.ten"][0]
    return row


def _way(path: Path, modality: Modality, num_workers: int) -> Way:
    files = sorted(map(str, path.glob("*.tar")))
    row_bytes = modality.delivered_bytes / modality.num_rows
    dataset = (
        webdataset.WebDataset(files, shardshuffle=len(files))
        .shuffle(min(_BUFFER_SAMPLES, int(_BUFFER_BYTES / row_bytes)))
        .decode()
        .map(_row)
        .batched(
            modality.batch_size,
            collation_fn=collate_trials if modality.ragged else torch.utils.data.default_collate,
        )
    )
    loader = webdataset.WebLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
    )

    def epoch(number: int) -> Iterator[Delivered]:
        random.seed(number)
        yield from loader

    return Way(f"WebDataset, {num_workers} workers", path, epoch)
