"""Decoded copies of shards: the same batches, decoded once, bounded, made again where they are damaged."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from voxray.core.batch import BatchRules, EpochRequest
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import ReadStage
from voxray.data.config import DataConfig
from voxray.data.reader import ShardError
from voxray.data.source import open_source
from voxray.testing.datasets import write_dataset
from voxray.testing.packed import Packed, PackedConfig, packed_rows, unpack

NUM_TRAIN, NUM_VAL = 203, 31


@pytest.fixture
def dataset(tmp_path) -> Path:
    rows = {"train": packed_rows(NUM_TRAIN, 1), "val": packed_rows(NUM_VAL, 2)}
    return write_dataset(tmp_path / "d", Packed(PackedConfig()).schema(), rows, 40)


@pytest.fixture
def calls(tmp_path) -> Path:
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


def num_unpacked(calls: Path) -> int:
    return sum(file.stat().st_size for file in calls.iterdir())


def source_of(dataset, calls, tmp_path, stages=None, **data):
    config = DataConfig(cache_dir=str(tmp_path / "cache"), shuffle_mb=0.005, **data)
    stages = stages or [ReadStage("unpack", partial(unpack, calls=str(calls)))]
    return open_source(dataset, config, stages=stages)


def read(source, epoch=0, split="train"):
    request = EpochRequest(split, 16, seed=3, epoch=epoch, rules=BatchRules(last_batch="pad"))
    return [{name: np.array(values) for name, values in batch.items()} for batch in source.batches(request)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            assert one[name].dtype == values.dtype
            np.testing.assert_array_equal(one[name], values)


def test_the_batches_are_the_same_and_each_row_is_decoded_once(dataset, calls, tmp_path):
    kept = source_of(dataset, calls, tmp_path, keep_decoded=True)
    ours = [batch for epoch in range(3) for batch in read(kept, epoch)] + read(kept, split="val")
    again = read(source_of(dataset, calls, tmp_path, keep_decoded=True))
    first_rows = 4  # tell the columns
    assert num_unpacked(calls) == NUM_TRAIN + NUM_VAL + first_rows
    plain = source_of(dataset, calls, tmp_path)
    theirs = [batch for epoch in range(3) for batch in read(plain, epoch)] + read(plain, split="val")
    assert_same(ours, theirs)
    assert_same(again, read(plain))
    # What reads a split as it is stored is as before.
    assert set(kept.read_split("val")) == {"sample_id", "group", "packed", "y"}


def test_a_damaged_copy_is_noticed_and_made_again(dataset, calls, tmp_path):
    theirs = read(source_of(dataset, calls, tmp_path))
    read(source_of(dataset, calls, tmp_path, keep_decoded=True))
    before = num_unpacked(calls)
    copy = sorted((tmp_path / "cache").glob("*.arrow"))[0]
    content = bytearray(copy.read_bytes())
    content[len(content) // 3] ^= 1
    copy.write_bytes(content)
    assert_same(read(source_of(dataset, calls, tmp_path, keep_decoded=True)), theirs)
    assert before < num_unpacked(calls) <= before + 40
    assert copy.read_bytes() != content


def test_a_damaged_shard_is_named(dataset, calls, tmp_path):
    shard = dataset / "shards" / "train-00002.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="train-00002"):
        read(source_of(dataset, calls, tmp_path, keep_decoded=True))


@pytest.mark.parametrize("data", [{"cache_gb": 1e-6}, {"on_error": "quarantine"}, {"keep_decoded": "auto"}])
def test_where_copies_cannot_be_kept_rows_are_decoded_each_time(dataset, calls, tmp_path, data):
    source = source_of(dataset, calls, tmp_path, **{"keep_decoded": True, **data})
    read(source)
    read(source)
    assert num_unpacked(calls) >= 2 * NUM_TRAIN
    assert not list((tmp_path / "cache").glob("*.arrow"))


def add_one(columns):
    return {**columns, "spikes": columns["spikes"] + 1}


def double_rate(columns):
    return {**columns, "rate": columns["rate"] * 2}


def other_rate(columns):
    return {**columns, "rate": columns["rate"] * 3}


@pytest.fixture
def ragged(tmp_path) -> Path:
    columns = {
        "sample_id": Column(TEXT),
        "group": Column(TEXT),
        "rate": Column("float32", (3,), unit="Hz"),
        "spikes": Column("int16", (None, 2), ragged=True),
        "raw": Column(BYTES),
    }
    rng = np.random.default_rng(0)
    names = np.array([f"r{i}" for i in range(60)], object)
    spikes, raw = np.empty(60, object), np.empty(60, object)
    for row in range(60):
        spikes[row] = rng.integers(0, 9, (row % 7, 2), dtype=np.int16)
        raw[row] = bytes(rng.integers(0, 256, row % 5, dtype=np.uint8))
    rate = rng.random((60, 3), dtype=np.float32)
    rows = {"sample_id": names, "group": names, "rate": rate, "spikes": spikes, "raw": raw}
    return write_dataset(tmp_path / "ragged", Schema(columns, group="group"), {"train": rows}, 25)


@pytest.mark.parametrize(("function", "is_kept"), [(double_rate, True), (add_one, False)])
def test_ragged_columns_pass_through_and_changed_ones_are_not_kept(
    ragged, calls, tmp_path, function, is_kept
):
    stages = [ReadStage("stage", function)]
    ours = read(source_of(ragged, calls, tmp_path, stages, keep_decoded=True))
    assert_same(ours, read(source_of(ragged, calls, tmp_path, stages)))
    assert bool(list((tmp_path / "cache").glob("*.arrow"))) == is_kept


def test_another_stage_has_copies_of_its_own(ragged, calls, tmp_path):
    for function in (double_rate, other_rate):
        stages = [ReadStage("stage", function)]
        ours = read(source_of(ragged, calls, tmp_path, stages, keep_decoded=True))
        assert_same(ours, read(source_of(ragged, calls, tmp_path, stages)))
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 6


def test_a_copy_keeps_the_columns_units(ragged, calls, tmp_path):
    stages = [ReadStage("stage", double_rate)]
    source = source_of(ragged, calls, tmp_path, stages, keep_decoded=True)
    plan = source.plan(EpochRequest("train", 16, seed=0))
    assert plan.columns["rate"].unit == "Hz"
    assert replace(plan, stages=()).stages == plan.stages == ()
