"""The order of an epoch, as properties over random sizes, seeds and worker counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.config.errors import InputError
from voxray.core.batch import EpochRequest
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream, ahead, verified_shard
from voxray.data.order import EpochOrder, batch_places, num_batches
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

shard_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(tuple)


@given(
    shards=shard_sizes,
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
    shuffle=st.booleans(),
    group_rows=st.integers(1, 300),
    data=st.data(),
)
def test_each_row_comes_once_and_any_stretch_is_found_alone(shards, seed, epoch, shuffle, group_rows, data):
    order = EpochOrder(shards, seed, 0, epoch, shuffle, group_rows)
    whole = order.rows(0, order.num_rows)
    assert order.num_rows == sum(shards)
    assert sorted(whole) == list(range(sum(shards)))
    start = data.draw(st.integers(0, order.num_rows))
    stop = data.draw(st.integers(start, order.num_rows))
    alone = EpochOrder(shards, seed, 0, epoch, shuffle, group_rows)
    assert np.array_equal(alone.rows(start, stop), whole[start:stop])


@given(shards=shard_sizes, seed=st.integers(0, 99), group_rows=st.integers(1, 200))
def test_shards_stay_together_in_groups(shards, seed, group_rows):
    """A group is whole shards of about `group_rows` rows, so that few shards are open at a time."""
    order = EpochOrder(shards, seed, 0, 0, True, group_rows)
    shard_of_row = np.repeat(np.arange(len(shards)), shards)[order.rows(0, order.num_rows)]
    spans = [np.flatnonzero(shard_of_row == shard) for shard in range(len(shards))]
    largest = max(shards)
    assert all(span[-1] - span[0] < group_rows + 2 * largest for span in spans)


def test_seed_stage_and_epoch_change_the_order():
    keys = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    assert len({tuple(EpochOrder((20, 30), *key, True, 10).rows(0, 50)) for key in keys}) == 4


def test_one_group_is_a_uniform_shuffle():
    """Where the split fits in a group, each row is equally likely at each place (chi-squared)."""
    from scipy import stats

    counts = np.zeros((6, 6))
    for epoch in range(2000):
        rows = EpochOrder((2, 4), 7, 0, epoch, True, 6).rows(0, 6)
        counts[np.arange(6), rows] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_a_plan_of_a_thousand_million_rows_takes_memory_for_its_shards_and_one_group():
    import tracemalloc

    shards = (100_000,) * 10_000
    tracemalloc.start()
    order = EpochOrder(shards, 1, 0, 0, True, group_rows=400_000)
    middle = order.rows(500_000_000, 500_000_064)
    again = EpochOrder(shards, 1, 0, 0, True, group_rows=400_000).rows(500_000_032, 500_000_064)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.num_rows == 10**9
    assert np.array_equal(middle[32:], again)
    assert peak < 64e6, "8 bytes for each row would be 8 GB"


@given(batch_len=st.integers(1, 100), world_size=st.sampled_from([1, 2, 3, 4, 8]))
def test_slices_join_to_the_batch_and_differ_by_one_row_at_most(batch_len, world_size):
    slices = [batch_places(3, 100, 300 + batch_len, rank, world_size) for rank in range(world_size)]
    assert [place for part in slices for place in range(*part)] == list(range(300, 300 + batch_len))
    lengths = [stop - start for start, stop in slices]
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"train": tiny_rows(101, 1), "val": tiny_rows(13, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 40)


def copies(batches):
    """Keep batches whose arrays are used again."""
    return [{name: values.copy() for name, values in batch.items()} for batch in batches]


def epoch_of(dataset, request, rank=0, world_size=1, window_mb=0.001):
    config = DataConfig(window_mb=window_mb, shuffle_mb=0.003)
    return copies(LocalStream(dataset, config, rank, world_size).batches(request))


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


def test_the_thread_ahead_passes_errors_on_and_ends_when_the_caller_stops():
    import threading

    def items():
        yield 1
        yield 2
        raise ValueError("broken")

    made = ahead(items(), 2)
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(made)
    before = threading.active_count()
    endless = ahead(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()
    assert threading.active_count() == before
