"""The node's cache of remote shards: fetched once, verified, bounded, and patient where patience helps."""

import errno
import multiprocessing
import os
import time

import fsspec
import numpy as np
import pytest

from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.core.schema import TEXT, Column, Schema
from voxray.data import shard_cache
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.manifest import load_manifest
from voxray.data.reader import ShardError
from voxray.data.shard_cache import ShardCache
from voxray.data.source import choose_transport, open_source
from voxray.data.store import Store
from voxray.testing.datasets import write_dataset

SCHEMA = Schema(
    {"sample_id": Column(TEXT), "group": Column(TEXT), "x": Column("float32", (64,))}, group="group"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shard_cache, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def dataset(tmp_path):
    names = np.array([f"r{i}" for i in range(100)], object)
    x = np.random.default_rng(0).standard_normal((100, 64), dtype=np.float32)
    return write_dataset(tmp_path / "d", SCHEMA, {"train": {"sample_id": names, "group": names, "x": x}}, 20)


@pytest.fixture
def remote(dataset):
    """The same dataset behind a URL that only fsspec knows."""
    system = fsspec.filesystem("memory")
    system.put(str(dataset), "/remote", recursive=True)
    yield "memory:///remote"
    system.rm("/remote", recursive=True)


@pytest.fixture
def downloads(monkeypatch):
    """The files that were downloaded, in order."""
    seen = []
    real = Store.download
    monkeypatch.setattr(Store, "download", lambda self, file, to: (seen.append(file), real(self, file, to)))
    return seen


def cache_in(tmp_path, limit=10**9):
    return ShardCache(tmp_path / "cache", limit)


def read(source, seed=1):
    request = EpochRequest("train", 16, seed)
    return [{name: values.copy() for name, values in batch.items()} for batch in source.batches(request)]


def test_a_remote_dataset_is_read_as_a_local_one_each_byte_once(dataset, remote, tmp_path, downloads):
    config = DataConfig(transport="cache", cache_dir=str(tmp_path / "cache"), shuffle_mb=0.01)
    local = LocalStream(dataset, DataConfig(shuffle_mb=0.01))
    for seed in (1, 2):
        for ours, theirs in zip(read(open_source(remote, config), seed), read(local, seed), strict=True):
            for name, values in theirs.items():
                np.testing.assert_array_equal(ours[name], values)
    assert sorted(downloads) == [shard.file for shard in load_manifest(dataset).shards]


def test_it_stays_within_its_size_and_evicts_what_was_used_longest_ago(dataset, tmp_path, downloads):
    shards = load_manifest(dataset).shards
    cache, store = cache_in(tmp_path, 3 * shards[0].bytes + 100), Store.of(dataset)
    for number in (0, 1, 2, 0, 3):
        cache.fetch(store, shards[number])
        time.sleep(0.01)
        assert sum(path.stat().st_size for path in cache.folder.glob("*.arrow")) <= cache.limit_bytes
    kept = {path.stem for path in cache.folder.glob("*.arrow")}
    assert kept == {shards[number].sha256 for number in (0, 2, 3)}


def test_a_shard_larger_than_the_cache_is_named(dataset, tmp_path):
    with pytest.raises(ShardError, match=r"train-00000\.arrow' has .* raise data.cache_gb"):
        cache_in(tmp_path, 100).fetch(Store.of(dataset), load_manifest(dataset).shards[0])


def test_what_fails_for_a_moment_is_tried_again(dataset, tmp_path, monkeypatch):
    real, tries = Store.download, []

    def flaky(self, file, to):
        tries.append(file)
        if len(tries) == 1:
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        real(self, file, to)
        if len(tries) == 2:
            with to.open("r+b") as out:
                out.truncate(10)

    monkeypatch.setattr(Store, "download", flaky)
    path = cache_in(tmp_path).fetch(Store.of(dataset), load_manifest(dataset).shards[0])
    assert path.read_bytes() == (dataset / load_manifest(dataset).shards[0].file).read_bytes()
    assert len(tries) == 3


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_what_stays_broken_is_named_and_leaves_nothing(dataset, tmp_path, damage, downloads):
    info = load_manifest(dataset).shards[1]
    shard = dataset / info.file
    if damage == "gone":
        shard.unlink()
    else:
        data = bytearray(shard.read_bytes())
        data[99] ^= 1
        shard.write_bytes(data)
    cache = cache_in(tmp_path)
    with pytest.raises(ShardError, match=r"train-00001\.arrow' could not be fetched in 4 tries"):
        cache.fetch(Store.of(dataset), info)
    assert len(downloads) == 4
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]


def test_a_full_disk_evicts_first_and_is_named_when_nothing_is_left(dataset, tmp_path, monkeypatch):
    shards, cache, store = load_manifest(dataset).shards, cache_in(tmp_path), Store.of(dataset)
    real = Store.download
    cache.fetch(store, shards[0])

    def room_for_one(self, file, to):
        if list(cache.folder.glob("*.arrow")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, file, to)

    monkeypatch.setattr(Store, "download", room_for_one)
    cache.fetch(store, shards[1])
    assert [path.stem for path in cache.folder.glob("*.arrow")] == [shards[1].sha256]

    def full(self, file, to):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "download", full)
    with pytest.raises(ShardError, match=r"is full and nothing is left to evict.*data\.cache_dir"):
        cache.fetch(store, shards[2])


def test_what_a_killed_process_left_is_removed(dataset, tmp_path):
    cache, shards = cache_in(tmp_path), load_manifest(dataset).shards
    cache.folder.mkdir()
    left = cache.folder / f"{shards[3].sha256}.partial-0badf00d"
    left.write_bytes(b"half")
    cache.fetch(Store.of(dataset), shards[0])
    assert not left.exists()


def _fetch(dataset, folder, start, log):
    real = Store.download

    def counted(self, file, to):
        with open(log, "a") as out:
            out.write(f"{file}\n")
        time.sleep(0.2)
        real(self, file, to)

    Store.download = counted
    start.wait()
    ShardCache(folder, 10**9).fetch(Store.of(dataset), load_manifest(dataset).shards[0])


def test_processes_of_a_node_fetch_a_shard_once(dataset, tmp_path):
    context = multiprocessing.get_context("fork")
    start, log = context.Event(), tmp_path / "log"
    workers = [
        context.Process(target=_fetch, args=(dataset, tmp_path / "cache", start, log)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert log.read_text().count("\n") == 1


def test_auto_says_which_way_and_why(dataset, remote):
    assert choose_transport(dataset, DataConfig())[0] == "local"
    assert choose_transport(remote, DataConfig())[0] == "cache"
    transport, reason = choose_transport(remote, DataConfig(cache_gb=1e-6))
    assert transport == "stream"
    assert "more than once per node" in reason
    assert choose_transport(remote, DataConfig(transport="local"))[0] == "local"


def test_a_url_that_nobody_can_open_is_named(tmp_path):
    with pytest.raises(InputError, match=r"'nowhere://x/y' cannot be opened"):
        load_manifest("nowhere://x/y")
    with pytest.raises(InputError, match=r"'memory://none/manifest\.json' cannot be read"):
        load_manifest("memory://none")
    with pytest.raises(InputError, match="is no dataset"):
        load_manifest(os.fspath(tmp_path))


def test_local_cannot_map_a_url(remote):
    with pytest.raises(InputError, match=r"transport=local .* folder"):
        open_source(remote, DataConfig(transport="local"))
