"""The order of an epoch, as properties over random sizes, seeds and worker counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.data.local import LocalStream, verified_shard
from voxray.data.order import epoch_order, num_batches, worker_slice
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

sizes = st.integers(1, 300)


@given(num_rows=sizes, seed=st.integers(0, 2**40), epoch=st.integers(0, 50), shuffle=st.booleans())
def test_each_row_comes_once(num_rows, seed, epoch, shuffle):
    order = epoch_order(num_rows, seed, 0, epoch, shuffle)
    assert sorted(order) == list(range(num_rows))
    assert np.array_equal(order, epoch_order(num_rows, seed, 0, epoch, shuffle))


def test_seed_stage_and_epoch_change_the_order():
    orders = {tuple(epoch_order(50, *key, True)) for key in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]}
    assert len(orders) == 4


@given(batch_len=st.integers(0, 100), world_size=st.sampled_from([1, 2, 3, 4, 8]))
def test_slices_join_to_the_batch_and_differ_by_one_row_at_most(batch_len, world_size):
    slices = [worker_slice(batch_len, rank, world_size) for rank in range(world_size)]
    assert [i for part in slices for i in range(batch_len)[part]] == list(range(batch_len))
    lengths = [part.stop - part.start for part in slices]
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"train": tiny_rows(101, 1), "val": tiny_rows(13, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 40)


def epoch_of(dataset, request, rank=0, world_size=1, window_mb=0.001):
    return list(LocalStream(dataset, rank, world_size, window_mb).batches(request))


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    seed=st.integers(0, 99),
    window_mb=st.sampled_from([0.0001, 0.003, 1.0]),
)
def test_workers_slices_make_the_global_batch(dataset, batch_size, world_size, seed, window_mb):
    request = EpochRequest("train", batch_size, seed)
    whole = epoch_of(dataset, request)
    parts = [epoch_of(dataset, request, rank, world_size, window_mb) for rank in range(world_size)]
    assert len(whole) == num_batches(101, batch_size)
    for index, batch in enumerate(whole):
        joined = [name for part in parts for name in part[index]["sample_id"][part[index]["valid"]]]
        assert joined == list(batch["sample_id"])
    assert sorted(name for batch in whole for name in batch["sample_id"]) == sorted(
        tiny_rows(101, 1)["sample_id"]
    )


def test_resume_at_a_batch_gives_the_tail(dataset):
    whole = epoch_of(dataset, EpochRequest("train", 8, 3))
    tail = epoch_of(dataset, EpochRequest("train", 8, 3, start_batch=5))
    assert [list(b["sample_id"]) for b in tail] == [list(b["sample_id"]) for b in whole[5:]]
    assert np.array_equal(tail[0]["position"], np.arange(40, 48))


def test_rows_are_the_ones_that_were_written(dataset):
    written = tiny_rows(101, 1)
    by_name = dict(zip(written["sample_id"], range(101), strict=True))
    for batch in epoch_of(dataset, EpochRequest("train", 16, 1)):
        rows = [by_name[name] for name in batch["sample_id"]]
        np.testing.assert_array_equal(batch["x"], written["x"][rows])
        np.testing.assert_array_equal(batch["y"], written["y"][rows])


def test_a_worker_without_rows_gets_one_that_does_not_count(dataset):
    batches = epoch_of(dataset, EpochRequest("val", 13, 0, shuffle=False), rank=0, world_size=16)
    assert [len(b["valid"]) for b in batches] == [1]
    assert not batches[0]["valid"].any()


def test_a_flipped_bit_is_noticed_before_a_row_is_used(tmp_path):
    dataset = write_dataset(
        tmp_path / "d", Tiny(TinyConfig()).schema(), {"train": tiny_rows(50, 1)}, rows_per_shard=50
    )
    shard = dataset / "shards" / "train-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    verified_shard.cache_clear()
    with pytest.raises(InputError, match=r"train-00000\.arrow is damaged"):
        epoch_of(dataset, EpochRequest("train", 16, 1))
