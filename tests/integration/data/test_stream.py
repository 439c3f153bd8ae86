"""Through Ray Data come the rows that a local read gives, in the same order, bit for bit, whatever dies."""

import os
import signal
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from kept_batches import copies, same
from voxray.config.errors import RunError
from voxray.core.batch import BatchRules, EpochRequest
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import ReadStage
from voxray.data import stream as stream_module
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.reader import ShardError
from voxray.data.source import open_source
from voxray.data.stream import RayStream
from voxray.testing.datasets import write_dataset
from voxray.testing.read_stages import mean_of_x, slow

pytestmark = pytest.mark.usefixtures("ray_cluster")

SCHEMA = Schema(
    {
        "sample_id": Column(TEXT),
        "session": Column(TEXT),
        "neural": Column("float32", (None, 3), ragged=True),
        "image": Column(BYTES),
        "x": Column("float32", (50, 4)),
        "block": Column("int16"),
    },
    group="session",
)


def rows_of(num, seed=0):
    rng = np.random.default_rng(seed)
    neural, images = np.empty(num, object), np.empty(num, object)
    for row in range(num):
        neural[row] = rng.standard_normal((int(rng.integers(0, 30)), 3), dtype=np.float32)
        images[row] = bytes([row % 256] * (row % 5))
    return {
        "sample_id": np.array([f"t{i}é" for i in range(num)], object),
        "session": np.array([f"s{i // 13}" for i in range(num)], object),
        "neural": neural,
        "image": images,
        "x": rng.standard_normal((num, 50, 4), dtype=np.float32),
        "block": np.arange(num, dtype=np.int16),
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "d", SCHEMA, {"train": rows_of(201)}, 60)


@pytest.mark.parametrize(
    ("rank", "world_size", "start", "rules"),
    [
        (0, 1, 0, BatchRules()),
        (0, 1, 3, BatchRules(filters=("block != 5",), last_batch="pad")),
        (1, 3, 0, BatchRules(group_by="session", groups_per_batch=4, bucket_by="neural")),
        (1, 2, 1, BatchRules(with_replacement=True, weights="block")),
    ],
)
def test_the_transports_agree_bit_for_bit(dataset, tmp_path, rank, world_size, start, rules):
    request = EpochRequest("train", 20, seed=5, epoch=2, start_batch=start, rules=rules)
    stages = [ReadStage("mean", mean_of_x)]
    common = {"window_mb": 0.06, "shuffle_mb": 0.1, "cache_dir": str(tmp_path / "cache")}
    delivered = {}
    for keeps in (False, True):
        for transport in ("local", "cache", "stream"):
            config = DataConfig(transport=transport, keep_decoded=keeps, **common)
            source = open_source(dataset, config, rank, world_size, stages)
            delivered[f"{transport}, kept" if keeps else transport] = copies(source.batches(request))
    assert len(delivered["local"]) >= 8 - start
    assert "mean" in delivered["local"][0]
    for batches in delivered.values():
        same(delivered["local"], batches)
    kept = {file.suffix for file in (tmp_path / "cache").iterdir()}
    assert ".json" in kept, "decoded copies were read"


def test_epochs_that_follow_one_another_are_read_ahead_and_given_up(dataset, monkeypatch):
    """The next Dataset is started before this epoch ends; the batches are those of a local read."""
    begun, start, others = [], stream_module._started, set(threading.enumerate())

    def noted(plan, windows):
        begun.append((plan.order.request.epoch, windows[0].start))
        return start(plan, windows)

    monkeypatch.setattr(stream_module, "_started", noted)
    stream = RayStream(dataset, DataConfig(window_mb=0.06, shuffle_mb=0.1))
    plain = LocalStream(dataset, DataConfig(shuffle_mb=0.1))
    first = EpochRequest("train", 20, seed=5, followed=True)
    for epoch in range(2):
        request = replace(first, epoch=epoch)
        batches = stream.batches(request)
        head = copies(islice(batches, 10))
        same(copies(plain.batches(replace(request, followed=False))), head + copies(batches))
    assert begun == [(0, 0), (1, 0), (2, 0)]
    resumed = replace(first, epoch=2, start_batch=5, followed=False)  # not what was prepared
    same(copies(plain.batches(resumed)), copies(stream.batches(resumed)))
    assert begun[3:] == [(2, 5)]
    assert list(islice(stream.batches(first), 10))[9]["x"].size
    plain.close()
    stream.close()
    left = [thread.name for thread in threading.enumerate() if thread not in others]
    assert not [name for name in left if name.startswith(("StreamingExecutor", "voxray-"))]


def test_a_window_without_stages_is_delivered_from_the_object_stores_memory(dataset):
    """Each array's address lies in the mapping of Ray's shared memory, as the kernel lists it."""
    batch = next(iter(RayStream(dataset, DataConfig()).batches(EpochRequest("train", 64, 1))))
    address = batch["x"].__array_interface__["data"][0]
    (line,) = [
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if (bounds := [int(part, 16) for part in line.split()[0].split("-")])[0] <= address < bounds[1]
    ]
    assert "plasma" in line


def test_a_damaged_shard_is_named_through_the_read_task(tmp_path):
    own = write_dataset(tmp_path / "d", SCHEMA, {"train": rows_of(90)}, 30)
    shard = own / "shards" / "train-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    request = EpochRequest("train", 16, 1)
    with pytest.raises(ShardError, match=r"train-00001\.arrow' is damaged in rows 0 to 29"):
        list(RayStream(own, DataConfig()).batches(request))
    told = []
    stream = RayStream(own, DataConfig(on_error="quarantine", window_mb=0.02), on_fault=told.append)
    batches = copies(stream.batches(request))
    same(batches, copies(LocalStream(own, DataConfig(on_error="quarantine")).batches(request)))
    assert sum(int(batch["valid"].sum()) for batch in batches) == 60
    assert len(told) == 1


def test_a_stage_that_workers_cannot_import_ends_the_run(dataset):
    """Ray Data would try such a task for ever."""
    stream = RayStream(dataset, DataConfig(), stages=[ReadStage("mine", rows_of)])
    with pytest.raises(RunError, match="cannot import what the batches need"):
        list(stream.batches(EpochRequest("train", 64, 1)))


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def readers():
    """Processes that run a read task now."""
    titles = ((path.parent, _read(path)) for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [int(folder.name) for folder, title in titles if b"ReadVoxrayWindows" in title]


@pytest.mark.chaos
def test_ten_killed_read_tasks_change_nothing(dataset):
    """Each time a read task runs, its process is killed with SIGKILL, ten times; Ray runs the task again."""
    request = EpochRequest("train", 4, seed=3)
    expected = copies(LocalStream(dataset, DataConfig(shuffle_mb=0.1)).batches(request))
    killed = []
    stop = threading.Event()

    def kill():
        while not stop.is_set() and len(killed) < 10:
            running = readers()
            if running:
                os.kill(running[0], signal.SIGKILL)
                killed.append(running[0])
            time.sleep(0.3)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        stream = RayStream(
            dataset, DataConfig(shuffle_mb=0.1, window_mb=0.004), stages=[ReadStage("slow", slow)]
        )
        delivered = copies(stream.batches(replace(request)))
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 10
    same(expected, delivered)
