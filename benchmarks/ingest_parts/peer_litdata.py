"""LitData: optimized chunks in a local folder, with 0 and 2 workers.

Settings of https://github.com/Lightning-AI/litdata: `optimize` with chunks of 64 MB, or 256 MB where a row
has some MB ("prefer a larger chunk"), `StreamingDataset(shuffle=True)`, which maps local chunks in place,
in a `StreamingDataLoader`.
"""

import contextlib
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata

from ingest_parts.measure import Delivered, Way
from ingest_parts.modalities import Modality, Row, decode_jpeg
from ingest_parts.peer_torch import collate_trials

_LARGE_ROW_BYTES = 1 << 20


def ways(modality: Modality, folder: Path) -> list[Way]:
    """Write the chunks and return the two ways to load them."""
    path = folder / "litdata"
    large = modality.delivered_bytes / modality.num_rows > _LARGE_ROW_BYTES
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        litdata.optimize(
            fn=partial(_row, modality),
            inputs=list(range(modality.num_rows)),
            output_dir=str(path),
            chunk_bytes="256MB" if large else "64MB",
            num_workers=2,
            start_method="fork",  # its default, spawn, would hold for the whole process: for every peer
        )
    return [_way(path, modality, num_workers) for num_workers in (0, 2)]


def _row(modality: Modality, number: int) -> Row:
    return modality.row(number)


def _decode(row: Row) -> dict[str, Any]:
    return {**row, "x": decode_jpeg(row["x"])}


def _way(path: Path, modality: Modality, num_workers: int) -> Way:
    dataset = litdata.StreamingDataset(
        str(path), shuffle=True, drop_last=False, transform=_decode if modality.jpeg_folder else None
    )
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=modality.batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        collate_fn=collate_trials if modality.ragged else None,
    )

    def epoch(number: int) -> Iterator[Delivered]:
        yield from loader  # the loader counts its own epochs

    return Way(f"LitData, {num_workers} workers", path, epoch)
