"""Batches from mapped shards: slices, resume, padding, ragged rows, reused memory, threads, faults."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kept_batches import copies
from voxray.config.errors import InputError
from voxray.core.batch import BatchRules, EpochRequest, as_tensor
from voxray.core.schema import BYTES, TEXT, Column, Schema
from voxray.core.task import ReadStage
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.reader import ShardError
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

TRIALS = Schema(
    {
        "sample_id": Column(TEXT),
        "session": Column(TEXT),
        "neural": Column("float32", (None, 3), ragged=True),
        "image": Column(BYTES),
        "block": Column("int16"),
    },
    group="session",
)


def trial_rows(num, seed=0):
    rng = np.random.default_rng(seed)
    neural = np.empty(num, object)
    images = np.empty(num, object)
    for row in range(num):
        neural[row] = rng.standard_normal((int(rng.integers(0, 30)), 3), dtype=np.float32)
        images[row] = bytes([row % 256] * (row % 5))
    names = np.array([f"t{i}" for i in range(num)], object)
    sessions = np.array([f"s{i // 13}" for i in range(num)], object)
    blocks = np.arange(num, dtype=np.int16)
    return {"sample_id": names, "session": sessions, "neural": neural, "image": images, "block": blocks}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"train": tiny_rows(101, 1), "val": tiny_rows(13, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 40)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "trials", TRIALS, {"train": trial_rows(101)}, 30)


def epoch_of(dataset, request, rank=0, world_size=1, window_mb=0.001, **values):
    config = DataConfig(window_mb=window_mb, shuffle_mb=0.003, **values)
    return copies(LocalStream(dataset, config, rank, world_size).batches(request))


rules_of_batches = st.builds(
    BatchRules,
    filters=st.sampled_from([(), ("block > 7",)]),
    group_by=st.sampled_from(["", "session"]),
    groups_per_batch=st.integers(1, 4),
    bucket_by=st.sampled_from(["", "neural"]),
    last_batch=st.sampled_from(["keep", "pad", "drop"]),
)


@settings(max_examples=40, deadline=None)
@given(
    batch_size=st.integers(1, 60),
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    seed=st.integers(0, 99),
    rules=rules_of_batches,
)
def test_workers_slices_make_the_global_batch(trials, batch_size, world_size, seed, rules):
    request = EpochRequest("train", batch_size, seed, rules=rules)
    order = LocalStream(trials, DataConfig(shuffle_mb=0.003)).order(request)
    parts = [epoch_of(trials, request, rank, world_size) for rank in range(world_size)]
    for batch in range(order.num_batches):
        mine = [part[batch] for part in parts]
        joined = [int(row) for own in mine for row in own["block"][own["valid"]]]
        assert joined == order.batch_rows(batch).tolist()
        places = [int(place) for own in mine for place in own["position"][own["valid"]]]
        assert places == list(range(*order.bounds(batch)))
        assert all(len(own["valid"]) for own in mine)
        if rules.last_batch == "pad" and batch_size >= world_size:
            assert sum(len(own["valid"]) for own in mine) == batch_size
    assert {len(part) for part in parts} == {order.num_batches}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), rules=rules_of_batches, data=st.data())
def test_resume_at_any_batch_gives_the_tail(trials, seed, rules, data):
    request = EpochRequest("train", 8, seed, rules=rules)
    whole = epoch_of(trials, request)
    start = data.draw(st.integers(0, len(whole)))
    tail = epoch_of(trials, replace(request, start_batch=start))
    assert len(tail) == len(whole) - start
    for ours, theirs in zip(tail, whole[start:], strict=True):
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values)


def test_rows_are_the_ones_that_were_written(dataset):
    written = tiny_rows(101, 1)
    by_name = dict(zip(written["sample_id"], range(101), strict=True))
    seen = []
    for batch in epoch_of(dataset, EpochRequest("train", 16, 1)):
        rows = [by_name[name] for name in batch["sample_id"]]
        seen += rows
        np.testing.assert_array_equal(batch["x"], written["x"][rows])
        np.testing.assert_array_equal(batch["y"], written["y"][rows])
    assert sorted(seen) == list(range(101))


@pytest.mark.parametrize("rank", [0, 1])
def test_ragged_rows_are_padded_with_zeros_to_the_longest_of_the_batch(trials, rank):
    written = trial_rows(101)
    for batch in epoch_of(trials, EpochRequest("train", 16, 1), rank, 2):
        rows = batch["block"].tolist()
        lengths = [len(written["neural"][row]) for row in rows]
        assert batch["neural"].shape == (len(rows), max(lengths), 3)
        assert batch["neural.length"].tolist() == lengths
        for values, row, length in zip(batch["neural"], rows, lengths, strict=True):
            np.testing.assert_array_equal(values[:length], written["neural"][row])
            assert not values[length:].any()
        assert list(batch["image"]) == [written["image"][row] for row in rows]


def test_a_split_that_fits_in_memory_is_read_whole(trials):
    whole = LocalStream(trials).read_split("train", BatchRules(filters=("block < 9",), bucket_by="neural"))
    assert whole["block"].tolist() == list(range(9))
    assert whole["neural"].shape[1] == whole["neural.length"].max()
    assert LocalStream(trials).num_chosen("train", BatchRules(filters=("block < 9",))) == 9
    assert LocalStream(trials).num_chosen("test", BatchRules()) == 0


def test_a_worker_without_rows_gets_one_that_does_not_count(dataset):
    batches = epoch_of(dataset, EpochRequest("val", 13, 0, shuffle=False), rank=0, world_size=16)
    assert [len(b["valid"]) for b in batches] == [1]
    assert not batches[0]["valid"].any()


MIXED = Schema(
    {
        "sample_id": Column(TEXT),
        "site": Column(TEXT),
        "odd": Column("uint8", (7,)),
        "five": Column("float32", (5,)),
        "flag": Column("uint8"),
        "wide": Column("float32", (1030,)),
        "wide_odd": Column("uint8", (17, 241)),
        "blob": Column(BYTES),
    },
    group="site",
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    rng = np.random.default_rng(3)
    num = 2300  # windows of 1,024, 1,024 and 252 rows in one shard
    blobs = np.empty(num, object)
    blobs[:] = [rng.bytes(int(size)) for size in rng.integers(0, 9, num)]
    rows = {
        "sample_id": np.array([f"row {i} é" for i in range(num)], object),
        "site": np.array(["", "Köln", "東京"], object)[rng.integers(0, 3, num)],
        "odd": rng.integers(0, 256, (num, 7), dtype=np.uint8),
        "five": rng.standard_normal((num, 5), dtype=np.float32),
        "flag": rng.integers(0, 2, num, dtype=np.uint8),
        "wide": rng.standard_normal((num, 1030), dtype=np.float32),
        "wide_odd": rng.integers(0, 256, (num, 17, 241), dtype=np.uint8),
        "blob": blobs,
    }
    return write_dataset(tmp_path_factory.mktemp("data") / "mixed", MIXED, {"train": rows}, num), rows


@pytest.mark.parametrize("batch_size", [3, 100, 2300])
def test_every_column_of_many_rows_is_what_was_written(mixed, batch_size):
    """Few and many rows of a window at a time; rows whose bytes do not divide the alignment."""
    path, rows = mixed
    request = EpochRequest("train", batch_size, 1, rules=BatchRules(limit=None if batch_size > 3 else 60))
    seen = []
    for batch in LocalStream(path, DataConfig(read_threads=1)).batches(request):
        own = [int(name.split()[1]) for name in batch["sample_id"]]
        seen += own
        for name, values in rows.items():
            np.testing.assert_array_equal(batch[name], values[own])
            assert batch[name].dtype == values.dtype
            assert values.dtype == object or batch[name].ctypes.data % 64 == 0
    assert sorted(set(seen)) == sorted(seen)
    assert len(seen) == (60 if batch_size == 3 else 2300)


def test_an_epoch_without_a_full_chunk_is_empty(trials):
    """Sessions of 13 rows, batches of one session, spans of one shard of 30 rows: none has 14 of a session,
    and sessions 0, 1, 3 and 5 lie whole in a shard.
    """
    rules = BatchRules(group_by="session", last_batch="drop")
    assert epoch_of(trials, EpochRequest("train", 14, 1, rules=rules)) == []
    assert len(epoch_of(trials, EpochRequest("train", 13, 1, rules=rules))) == 4


def double_block(columns):
    return {**columns, "block": columns["block"] * 2}


def test_read_stages_run_on_each_batch(trials):
    request = EpochRequest("train", 16, 1)
    config = DataConfig(shuffle_mb=0.003, read_threads=3)
    staged = LocalStream(trials, config, stages=[ReadStage("double", double_block)])
    for ours, plain in zip(copies(staged.batches(request)), epoch_of(trials, request), strict=True):
        np.testing.assert_array_equal(ours["block"], plain["block"] * 2)
        np.testing.assert_array_equal(ours["neural"], plain["neural"])


# --- faults


def flip(path, share=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 4
    path.write_bytes(data)


@pytest.fixture
def own(tmp_path):
    return write_dataset(tmp_path / "d", Tiny(TinyConfig()).schema(), {"train": tiny_rows(120, 1)}, 40)


def test_a_flipped_bit_is_noticed_before_a_row_is_used(own):
    flip(own / "shards" / "train-00001.arrow")
    with pytest.raises(ShardError, match=r"train-00001\.arrow' is damaged in rows 0 to 39"):
        epoch_of(own, EpochRequest("train", 16, 1))


def test_a_shard_that_vanished_is_named(own):
    (own / "shards" / "train-00002.arrow").unlink()
    with pytest.raises(ShardError, match=r"train-00002\.arrow' is missing"):
        epoch_of(own, EpochRequest("train", 16, 1))


def test_a_damaged_index_is_named(own):
    flip(own / "index" / "train-00000.arrow")
    with pytest.raises(InputError, match=r"index/train-00000\.arrow' is damaged"):
        epoch_of(own, EpochRequest("train", 16, 1, rules=BatchRules(filters=("group != 'x'",))))


@pytest.mark.parametrize("gone", [True, False])
def test_quarantine_leaves_the_damaged_rows_out_and_the_order_as_it_was(own, gone):
    request = EpochRequest("train", 16, 1)
    whole = epoch_of(own, request)
    shard = own / "shards" / "train-00001.arrow"
    shard.unlink() if gone else flip(shard)
    lost = set(tiny_rows(120, 1)["sample_id"][40:80])
    told = []
    stream = LocalStream(own, DataConfig(shuffle_mb=0.003, on_error="quarantine"), on_fault=told.append)
    for start in (0, 3):  # from the beginning, and resumed
        batches = copies(stream.batches(replace(request, start_batch=start)))
        assert len(batches) == len(whole) - start
        for ours, theirs in zip(batches, whole[start:], strict=True):
            np.testing.assert_array_equal(ours["position"], theirs["position"])
            for row, name in enumerate(theirs["sample_id"]):
                assert bool(ours["valid"][row]) == (name not in lost)
                np.testing.assert_array_equal(ours["x"][row], theirs["x"][row] * (name not in lost))
    assert len(told) == 1
    assert "train-00001.arrow" in told[0]
    assert "left out" in told[0]


@pytest.mark.parametrize(("batch_size", "width"), [(10, 1030), (64, 1024), (7, 70_000)])
def test_what_is_left_of_large_rows_goes_where_it_belongs(tmp_path, batch_size, width):
    """Rows that are copied many at a time, or are too large for that, with a shard missing among them."""
    values = np.random.default_rng(5).standard_normal((90, width), dtype=np.float32)
    rows = {"sample_id": np.array([f"{i}" for i in range(90)], object), "x": values}
    schema = Schema({"sample_id": Column(TEXT), "x": Column("float32", (width,))}, group="sample_id")
    path = write_dataset(tmp_path / "d", schema, {"train": rows}, 30)
    request, config = EpochRequest("train", batch_size, 1), DataConfig(on_error="quarantine")
    whole = copies(LocalStream(path, config).batches(request))
    (path / "shards" / "train-00001.arrow").unlink()
    some = copies(LocalStream(path, config).batches(request))
    found = 0
    for before, after in zip(whole, some, strict=True):
        own = before["sample_id"].astype(int)
        np.testing.assert_array_equal(before["x"], values[own])
        is_lost = (own >= 30) & (own < 60)
        np.testing.assert_array_equal(after["x"], values[own] * ~is_lost[:, None])
        found += len(own) - is_lost.sum()
    assert found == 60


# --- memory


@settings(max_examples=30, deadline=None)
@given(held=st.integers(0, 6), seed=st.integers(0, 9))
def test_memory_is_not_written_while_a_batch_or_a_tensor_of_it_lives(trials, held, seed):
    """Some batches are kept, as arrays, slices or tensors; all others go. What was kept stays as it was."""
    kept, copied = [], []
    for batch in LocalStream(trials, DataConfig(shuffle_mb=0.003)).batches(EpochRequest("train", 4, seed)):
        if len(kept) <= held:
            views = [batch["neural"], batch["neural"][1:2, ::2], as_tensor(batch["neural"])]
            kept.append(views[len(kept) % 3])
            copied.append(np.array(kept[-1]))
    for view, copy in zip(kept, copied, strict=True):
        np.testing.assert_array_equal(np.asarray(view), copy)


def test_memory_is_used_again_over_epochs(dataset):
    stream = LocalStream(dataset)
    seen = [
        batch["x"].__array_interface__["data"][0]
        for epoch in range(6)
        for batch in stream.batches(EpochRequest("train", 8, 1, epoch=epoch))
    ]
    assert len(seen) == 78
    assert len(set(seen)) <= 5 * 13
    assert all(address % 64 == 0 for address in seen)


def test_a_column_becomes_a_tensor_without_a_copy_where_that_is_safe():
    aligned = next(a for a in (np.zeros(64 + i, np.float32) for i in range(999)) if a.ctypes.data % 64 == 0)
    assert as_tensor(aligned).data_ptr() == aligned.ctypes.data
    read_only = aligned.view()
    read_only.flags.writeable = False
    for values in (aligned[1:], aligned[::2], read_only):
        tensor = as_tensor(values)
        assert tensor.data_ptr() != values.ctypes.data
        assert tensor.tolist() == values.tolist()
