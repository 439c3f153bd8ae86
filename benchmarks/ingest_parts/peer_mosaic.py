"""MosaicML Streaming: MDS shards in a local folder, with 0 and 2 workers.

Settings of https://docs.mosaicml.com/projects/streaming/en/stable/dataset_configuration/shuffling.html
(`shuffle=True`; the default algorithm py1e and block size "ensure high shuffle quality and throughput") and
https://docs.mosaicml.com/projects/streaming/en/stable/preparing_datasets/dataset_format.html: static dtype
and shape per array, shards of 64 MB, no compression.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streaming
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from ingest_parts.measure import Delivered, Way
from ingest_parts.modalities import Modality, decode_jpeg
from ingest_parts.peer_torch import collate_trials


class Decoded(streaming.StreamingDataset):
    """Rows whose `x` is JPEG, decoded where they are read."""

    def __getitem__(self, at: int) -> Any:
        row = super().__getitem__(at)
        return {**row, "x": decode_jpeg(row["x"])}


def ways(modality: Modality, folder: Path) -> list[Way]:
    """Write the MDS shards and return the two ways to load them."""
    path = folder / "mds"
    with streaming.MDSWriter(out=str(path), columns=_encodings(modality)) as writer:
        for row in modality.rows():
            writer.write(row)
    clean_stale_shared_memory()
    return [_way(path, modality, num_workers) for num_workers in (0, 2)]


def _encodings(modality: Modality) -> dict[str, str]:
    if modality.jpeg_folder is not None:
        x = "bytes"
    elif modality.ragged:
        x = f"ndarray:{modality.dtype}"
    else:
        x = f"ndarray:{modality.dtype}:{','.join(map(str, modality.shape))}"
    encodings = {"number": "int", "x": x}
    if modality.target_shape:
        encodings["y"] = f"ndarray:float32:{','.join(map(str, modality.target_shape))}"
    return encodings


def _way(path: Path, modality: Modality, num_workers: int) -> Way:
    kind = Decoded if modality.jpeg_folder is not None else streaming.StreamingDataset
    dataset = kind(local=str(path), shuffle=True, batch_size=modality.batch_size)
    loader = DataLoader(
        dataset,
        batch_size=modality.batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        collate_fn=collate_trials if modality.ragged else None,
    )

    def epoch(number: int) -> Iterator[Delivered]:
        yield from loader  # the dataset counts its own epochs

    return Way(f"MosaicML Streaming, {num_workers} workers", path, epoch)
