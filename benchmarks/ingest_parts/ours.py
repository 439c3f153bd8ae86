"""voxray's own ways, and the limit: a gather of the same rows in the same order by one thread.

`local` and `cache` lend their arrays until the next batch is asked for, and `stream` gives views of the
object store; a training step copies them to its device. The way with own tensors makes that copy too, on
the CPU, as the DataLoaders of the peers do.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ingest_parts.measure import Delivered, Way
from ingest_parts.modalities import Modality, decode_batch, decode_jpeg
from voxray.core.batch import EpochRequest
from voxray.core.task import ReadStage
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.source import batch_rules, open_source
from voxray.testing.datasets import write_dataset

LOCAL, CACHE, STREAM = "voxray local", "voxray cache", "voxray stream"
OWN, BUCKETS, LIMIT = "voxray local, own tensors", "voxray local, length buckets", "limit"
SEED = 1


class LazyColumn:
    """A column whose rows are made when they are asked for, so that no dataset is held in memory."""

    def __init__(self, num_rows: int, value: Callable[[int], Any]) -> None:
        self._num_rows, self._value = num_rows, value

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> Any:
        return self._value(index)


def write(modality: Modality, folder: Path) -> Path:
    """Write the rows as a prepared dataset and return its folder."""
    columns: dict[str, Any] = {
        name: LazyColumn(modality.num_rows, lambda i, name=name: modality.row(i)[name])
        for name in modality.stored
    }
    columns["sample_id"] = np.array([f"row{i}" for i in range(modality.num_rows)], dtype=object)
    ordered = {name: columns[name] for name in modality.schema.columns}
    return write_dataset(folder / "shards", modality.schema, {"train": ordered}, modality.rows_per_shard)


def ways(modality: Modality, path: Path) -> list[Way]:
    """Return our ways, and the limit, which gathers what `local` has just delivered."""
    delivered: list[np.ndarray] = []
    found = [
        _way(LOCAL, modality, path, DataConfig(transport="local"), delivered),
        Way(LIMIT, path, _limit(modality, path, delivered)),
        cache_way(modality, path, path.parent / "copies"),
        _way(STREAM, modality, path, DataConfig(transport="stream")),
    ]
    if modality.jpeg_folder is None:  # decoded rows are copied into new arrays anyway
        found.append(_own_tensors(modality, path))
    if modality.ragged:
        buckets = DataConfig(transport="local", bucket_by="x")
        found.append(_way(BUCKETS, modality, path, buckets))
    return found


def ways_beside(modality: Modality, path: Path, with_stream: bool) -> list[Way]:
    """Return those of our ways that take turns with a peer's; none has memory yet."""
    transports = {LOCAL: "local", STREAM: "stream"} if with_stream else {LOCAL: "local"}
    return [_way(name, modality, path, DataConfig(transport=own)) for name, own in transports.items()]


def followed_ways(modality: Modality, path: Path) -> list[Way]:
    """Return ways whose epochs follow one another, as a training run's do; `close` them afterwards."""
    ways = []
    for name, transport in ((LOCAL, "local"), (STREAM, "stream")):
        config = DataConfig(transport=transport)
        source = _opened(modality, path, config)
        ways.append(Way(name, path, _epochs(modality, source, config, followed=True), source.close))
    return ways


def cache_way(modality: Modality, path: Path, copies: Path) -> Way:
    """Return the way that copies shards to a folder of this node first; epoch 0 fetches them all."""
    way = _way(CACHE, modality, path, DataConfig(transport="cache", cache_dir=str(copies)))
    copies.mkdir()
    return Way(CACHE, copies, way.epoch)


def batches(
    modality: Modality,
    path: Path | str,
    config: DataConfig,
    rank: int = 0,
    world_size: int = 1,
    followed: bool = False,
) -> Callable[[int], Iterator[Delivered]]:
    """Return what yields a worker's batches of an epoch."""
    return _epochs(modality, _opened(modality, path, config, rank, world_size), config, followed)


def _opened(
    modality: Modality, path: Path | str, config: DataConfig, rank: int = 0, world_size: int = 1
) -> LocalStream:
    stages = [ReadStage("decode", decode_batch)] if modality.jpeg_folder is not None else []
    return open_source(path, config, rank, world_size, stages)


def _epochs(
    modality: Modality, source: LocalStream, config: DataConfig, followed: bool = False
) -> Callable[[int], Iterator[Delivered]]:
    rules = batch_rules(config, training=True)

    def epoch(number: int) -> Iterator[Delivered]:
        request = EpochRequest(
            "train", modality.batch_size, seed=SEED, epoch=number, rules=rules, followed=followed
        )
        for columns in source.batches(request):
            batch: dict[str, Any] = {name: columns[name] for name in modality.stored}
            if modality.ragged:
                batch["length"] = columns["x.length"]
            yield batch

    return epoch


def _way(
    name: str, modality: Modality, path: Path, config: DataConfig, delivered: list[np.ndarray] | None = None
) -> Way:
    source = batches(modality, path, config)

    def epoch(number: int) -> Iterator[Delivered]:
        if delivered is not None:
            delivered.clear()
        for batch in source(number):
            if delivered is not None:
                delivered.append(batch["number"].copy())
            yield batch

    return Way(name, path, epoch)


def _own_tensors(modality: Modality, path: Path) -> Way:
    source = batches(modality, path, DataConfig(transport="local"))

    def epoch(number: int) -> Iterator[Delivered]:
        for batch in source(number):
            yield {name: torch.tensor(values) for name, values in batch.items()}

    return Way(OWN, path, epoch)


def _limit(
    modality: Modality, path: Path, delivered: list[np.ndarray]
) -> Callable[[int], Iterator[Delivered]]:
    """Return a gather into buffers that are used again, of the mapped shards' rows, by this thread."""
    rows = _mapped_rows(modality, path)
    shapes = {"x": (modality.dtype, modality.shape), "y": ("float32", modality.target_shape)}
    names = modality.stored[1:]
    buffers = {n: np.empty((modality.batch_size, *shapes[n][1]), shapes[n][0]) for n in names}

    def epoch(_number: int) -> Iterator[Delivered]:
        for numbers in delivered:
            size = len(numbers)
            batch: dict[str, Any] = {"number": numbers, **{n: buffers[n][:size] for n in names}}
            chosen = numbers.tolist()
            if modality.ragged:
                batch["x"], batch["length"] = _padded(rows["x"], chosen, buffers["x"])
            elif modality.jpeg_folder is not None:
                for place, row in zip(batch["x"], chosen, strict=True):
                    np.copyto(place, decode_jpeg(rows["x"][row].as_py()))
            else:
                for name in names:
                    own = rows[name]
                    for place, row in zip(batch[name], chosen, strict=True):
                        np.copyto(place, own[row])
            yield batch

    return epoch


def _padded(trials: list[np.ndarray], chosen: list[int], buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write trials into the buffer's memory as one padded batch [B, T_max, C]."""
    own = [trials[row] for row in chosen]
    lengths = np.array([len(trial) for trial in own], dtype=np.int64)
    longest = int(lengths.max())
    padded = buffer.reshape(-1)[: len(own) * longest * buffer.shape[-1]].reshape(len(own), longest, -1)
    for place, trial in zip(padded, own, strict=True):
        np.copyto(place[: len(trial)], trial)
        place[len(trial) :] = 0
    return padded, lengths


def _mapped_rows(modality: Modality, path: Path) -> dict[str, list[Any]]:
    """Return a view of every row of the mapped shards, by its number, read with pyarrow alone."""
    found: dict[str, list[Any]] = {name: [None] * modality.num_rows for name in modality.stored[1:]}
    for file in sorted((path / "shards").glob("*.arrow")):
        shard = pa.ipc.open_file(pa.memory_map(str(file)))
        for index in range(shard.num_record_batches):
            window = shard.get_batch(index)
            numbers = window.column("number").to_pylist()
            for name, views in found.items():
                for number, view in zip(numbers, _views(modality, window, name), strict=True):
                    views[number] = view
    return found


def _views(modality: Modality, window: pa.RecordBatch, name: str) -> Any:
    column = window.column(name)
    if modality.jpeg_folder is not None:
        return column
    shape = modality.target_shape if name == "y" else modality.shape
    if not modality.ragged:
        return column.flatten().to_numpy().reshape(-1, *shape)
    offsets = column.offsets.to_numpy()
    entries = column.values.flatten().to_numpy().reshape(-1, *shape[1:])
    return [entries[start:stop] for start, stop in itertools.pairwise(offsets)]
