"""How fast shuffled rows reach a training process: voxray's transports, its peers, the limit.

Run: python benchmarks/ingest.py [--quick] [--json FILE]. One process, all ways in turn, medians over epochs;
the same rows, dtype and batch size on all sides, each epoch checked. fMRI: 15,724 float32 voxels a row,
3.0 GB (quick: 0.38 GB), files hot in the page cache.

Peers, as their guides write them: torch DataLoader over HDF5 with 0 and 2 persistent workers
(https://docs.pytorch.org/docs/stable/data.html), Ray Data `read_parquet` → `iter_torch_batches` with a local
shuffle buffer (https://docs.ray.io/en/latest/data/shuffling-data.html). The limit gathers the same rows into
one reused buffer on one thread.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from voxray.cluster.connect import connect
from voxray.core.batch import EpochRequest
from voxray.core.schema import Column, Schema
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.order import EpochOrder
from voxray.data.shards import open_shard
from voxray.testing.datasets import write_dataset

NUM_VOXELS = 15_724
BATCH = 64
ROWS_PER_SHARD = 2_000  # 126 MB
WAYS = Callable[
    [int], Iterator[np.ndarray]
]  # epoch → each batch's row numbers, after its voxels were touched


class Hdf5Rows(Dataset):
    """Rows of an HDF5 file, opened once per worker."""

    def __init__(self, file: Path, num_rows: int) -> None:
        self.file, self.num_rows, self.handle = file, num_rows, None

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if self.handle is None:
            self.handle = h5py.File(self.file, "r")
        return index, torch.from_numpy(self.handle["x"][index])


def write_all(folder: Path, num_rows: int) -> None:
    """Write the same rows as shards, HDF5 and Parquet (row groups of 500, uncompressed)."""
    rng = np.random.default_rng(0)
    voxels = rng.standard_normal((num_rows, NUM_VOXELS), dtype=np.float32)
    numbers = np.arange(num_rows, dtype=np.int64)
    names = np.array([f"row{i}" for i in range(num_rows)], dtype=object)
    columns = {"sample_id": Column("text"), "number": Column("int64"), "x": Column("float32", (NUM_VOXELS,))}
    schema = Schema(columns, group="sample_id")
    rows = {"train": {"sample_id": names, "number": numbers, "x": voxels}}
    write_dataset(folder / "shards", schema, rows, ROWS_PER_SHARD)
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("x", data=voxels)
    (folder / "parquet").mkdir()
    for start in range(0, num_rows, ROWS_PER_SHARD):
        part = voxels[start : start + ROWS_PER_SHARD]
        tensor = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), NUM_VOXELS)
        table = pa.table({"number": numbers[start : start + ROWS_PER_SHARD], "x": tensor})
        file = folder / "parquet" / f"{start:08d}.parquet"
        pq.write_table(table, file, row_group_size=500, compression="none")


def voxray_way(stream: LocalStream) -> WAYS:
    """Return voxray's batches."""

    def epoch(number: int) -> Iterator[np.ndarray]:
        for batch in stream.batches(EpochRequest("train", BATCH, seed=1, epoch=number)):
            torch.from_numpy(np.require(batch["x"], requirements="W"))
            yield batch["number"]

    return epoch


def loader_way(file: Path, num_rows: int, num_workers: int) -> WAYS:
    """Return a DataLoader over HDF5."""
    loader = DataLoader(
        Hdf5Rows(file, num_rows),
        batch_size=BATCH,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
    )

    def epoch(number: int) -> Iterator[np.ndarray]:
        torch.manual_seed(number)
        for numbers, _ in loader:
            yield numbers.numpy()

    return epoch


def ray_guide_way(folder: Path) -> WAYS:
    """Return Ray Data as its guide writes it."""
    import ray.data

    def epoch(number: int) -> Iterator[np.ndarray]:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.read_parquet(str(folder))
        for batch in rows.iter_torch_batches(
            batch_size=BATCH, prefetch_batches=2, local_shuffle_buffer_size=1000, local_shuffle_seed=number
        ):
            yield batch["number"].numpy()

    return epoch


def limit_way(folder: Path, num_rows: int) -> WAYS:
    """Return a gather of the same rows, in the same order, into one reused buffer on one thread."""
    files = sorted((folder / "shards").glob("*.arrow"))
    views = [view for file in files for view in open_shard(file)._views["x"]]
    sizes = tuple(len(view) for view in views)
    starts = np.cumsum([0, *sizes])
    buffer = np.empty((BATCH, NUM_VOXELS), np.float32)

    def epoch(number: int) -> Iterator[np.ndarray]:
        order = EpochOrder(sizes, 1, 0, number, True, num_rows)
        for start in range(0, num_rows, BATCH):
            rows = order.rows(start, min(start + BATCH, num_rows))
            of_view = np.searchsorted(starts, rows, side="right") - 1
            for place, (row, view) in enumerate(zip(rows, of_view, strict=True)):
                buffer[place] = views[view][row - starts[view]]
            yield rows

    return epoch


def measure(way: WAYS, epoch: int, num_rows: int) -> tuple[float, float]:
    """Return (rows/s of a whole epoch, seconds to the first batch); the epoch's rows are checked."""
    before = time.perf_counter()
    first = 0.0
    total = count = 0
    for numbers in way(epoch):
        first = first or time.perf_counter() - before
        total += int(numbers.sum())
        count += len(numbers)
    seconds = time.perf_counter() - before
    assert (count, total) == (num_rows, num_rows * (num_rows - 1) // 2), "an epoch is not each row once"
    return num_rows / seconds, first


def main() -> None:
    """Measure all ways in turn, print a table, write records."""
    from voxray.data.stream import RayStream

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6,000 rows and 3 epochs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    num_rows, epochs = (6_000, 3) if options.quick else (48_000, 5)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="ingest"))
    try:
        write_all(folder, num_rows)
        config = DataConfig()
        with connect():
            ways = {
                "limit": limit_way(folder / "shards", num_rows),
                "voxray local": voxray_way(LocalStream(folder / "shards", config)),
                "voxray stream": voxray_way(RayStream(folder / "shards", config)),
                "DataLoader HDF5, 0 workers": loader_way(folder / "rows.h5", num_rows, 0),
                "DataLoader HDF5, 2 workers": loader_way(folder / "rows.h5", num_rows, 2),
                "Ray Data guide": ray_guide_way(folder / "parquet"),
            }
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for epoch in range(epochs + 1):
                for name, way in ways.items():
                    seen[name].append(measure(way, epoch, num_rows))
    finally:
        shutil.rmtree(folder)
    later = {name: values[1:] for name, values in seen.items()}
    speed = {name: statistics.median(rate for rate, _ in values) for name, values in later.items()}
    print(f"{'':28}{'rows/s':>9}{'MB/s':>8}{'spread':>18}{'first batch':>13}{'epoch 1':>10}")
    for name, values in later.items():
        rates = [rate for rate, _ in values]
        first = statistics.median(first for _, first in values)
        spread = f"{min(rates):.0f}–{max(rates):.0f}"
        megabytes = speed[name] * NUM_VOXELS * 4 / 1e6
        cold = seen[name][0][0]
        print(f"{name:28}{speed[name]:9.0f}{megabytes:8.0f}{spread:>18}{first * 1e3:10.0f} ms{cold:10.0f}")
    records = [
        {
            "benchmark": "ingest fmri",
            "case": f"{ours} / {peer}",
            "ours": speed[ours],
            "peer": speed[peer],
            "unit": "rows/s",
            "ratio": speed[ours] / speed[peer],
            "better": "higher",
        }
        for ours in ("voxray local", "voxray stream")
        for peer in speed
        if not peer.startswith("voxray")
    ]
    for record in records:
        print(f"{record['case']:50} {record['ratio']:6.2f} ×")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
