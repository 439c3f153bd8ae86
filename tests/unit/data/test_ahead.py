"""Reading ahead, inside an epoch and over its end: the same batches, bounded, given up cleanly."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import pytest

from kept_batches import copies, same
from voxray.core.batch import EpochRequest
from voxray.data import ahead
from voxray.data.ahead import Ahead
from voxray.data.config import DataConfig
from voxray.data.local import LocalStream
from voxray.data.plan import EpochPlan
from voxray.data.reader import ShardError
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

FIRST = EpochRequest("train", 8, seed=4, followed=True)
VALIDATION = EpochRequest("val", 8, seed=0, shuffle=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"train": tiny_rows(101, 1), "val": tiny_rows(13, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 40)


def stream_of(dataset):
    return LocalStream(dataset, DataConfig(shuffle_mb=0.003, read_threads=2))


def alone(dataset, request):
    """What a stream that was never asked for anything else delivers."""
    return copies(stream_of(dataset).batches(replace(request, followed=False)))


@pytest.fixture
def windows_of_one_batch(monkeypatch):
    """Each batch is a window of its own, so that 13 windows make an epoch."""
    monkeypatch.setattr(LocalStream, "_batches_at_once", lambda self, request: 1)


@pytest.fixture
def gathered(monkeypatch):
    """What was gathered so far: (epoch, split, first batch)."""
    found, gather = [], EpochPlan.gather

    def noted(plan, window, into=None):
        request = plan.order.request
        found.append((request.epoch, request.split, window.start))
        return gather(plan, window, into)

    monkeypatch.setattr(EpochPlan, "gather", noted)
    return found


def settled(found):
    """Return what was gathered once the threads have nothing to do."""
    num = -1
    while num != len(found):
        num = len(found)
        time.sleep(0.1)
    return list(found)


@pytest.mark.usefixtures("windows_of_one_batch")
def test_epochs_that_follow_one_another_are_those_of_fresh_streams(dataset):
    stream = stream_of(dataset)
    for epoch in range(4):
        request = replace(FIRST, epoch=epoch)
        same(copies(stream.batches(request)), alone(dataset, request))
        same(copies(stream.batches(VALIDATION)), alone(dataset, VALIDATION))
        next(iter(stream.batches(VALIDATION)))  # pictures are drawn of the first batch
    stream.close()


@pytest.mark.parametrize(
    "wanted",
    [
        replace(FIRST, epoch=1, start_batch=3),
        replace(FIRST, epoch=0),
        replace(FIRST, epoch=2),
        replace(FIRST, stage=1),
        replace(FIRST, epoch=1, batch_size=16),
    ],
    ids=["inside the epoch", "the epoch again", "another epoch", "another stage", "another batch size"],
)
@pytest.mark.usefixtures("windows_of_one_batch")
def test_what_was_prepared_is_given_up_for_another_request(dataset, wanted):
    stream = stream_of(dataset)
    copies(stream.batches(FIRST))
    same(copies(stream.batches(wanted)), alone(dataset, wanted))
    following = replace(wanted, epoch=wanted.epoch + 1, start_batch=0)
    same(copies(stream.batches(following)), alone(dataset, following))
    stream.close()


@pytest.mark.usefixtures("windows_of_one_batch")
def test_the_next_epoch_begins_while_the_last_batches_are_used_and_no_more(dataset, gathered):
    stream = stream_of(dataset)
    batches = stream.batches(FIRST)
    num_ahead, num = 2, 13
    for used in range(1, num + 1):
        next(batches)
        found = settled(gathered) if used > num - 4 else gathered
        ahead_of_use = len(found) - used
        assert ahead_of_use <= num_ahead
        if used > num - 4:
            assert ahead_of_use == num_ahead
            assert [place for place in found if place[0] == 1] == [
                (1, "train", batch) for batch in range(max(0, used + num_ahead - num))
            ]
    assert list(batches) == []
    assert {place for place in settled(gathered) if place[0] == 1} == {
        (1, "train", b) for b in range(num_ahead + 1)
    }
    copies(stream.batches(VALIDATION))
    before = len(settled(gathered))
    next(iter(stream.batches(replace(FIRST, epoch=1, followed=False))))
    assert (1, "train", 0) not in settled(gathered)[before:]  # it was read already
    stream.close()


@pytest.mark.usefixtures("windows_of_one_batch")
def test_an_epoch_that_is_the_last_prepares_nothing(dataset, gathered):
    stream = stream_of(dataset)
    copies(stream.batches(replace(FIRST, followed=False)))
    assert {epoch for epoch, _, _ in settled(gathered)} == {0}
    stream.close()


@pytest.mark.parametrize("used", [1, 12, 13, 14])
@pytest.mark.usefixtures("windows_of_one_batch")
def test_after_close_no_thread_is_left_and_the_stream_can_be_used_again(dataset, used):
    stream = stream_of(dataset)
    batches = stream.batches(FIRST)
    assert len(list(islice(batches, used))) == min(used, 13)
    batches.close()
    stream.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("voxray-read")]
    same(copies(stream.batches(FIRST)), alone(dataset, FIRST))
    stream.close()


def test_a_fault_of_the_next_epoch_is_told_when_that_is_asked_for(tmp_path):
    """The end of one epoch needs the sound shard alone, the beginning of the next one the damaged one."""
    own = write_dataset(tmp_path / "d", Tiny(TinyConfig()).schema(), {"train": tiny_rows(80, 1)}, 40)
    shard = own / "shards" / "train-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    stream = LocalStream(own, DataConfig(shuffle_mb=0.001, read_threads=2))
    first = [stream.order(replace(FIRST, epoch=epoch)).span_shards(0).tolist() for epoch in range(20)]
    epoch = next(i for i in range(19) if first[i] == first[i + 1] == [1])
    assert len(copies(stream.batches(replace(FIRST, epoch=epoch, start_batch=8)))) == 2
    with pytest.raises(ShardError, match="train-00001"):
        next(stream.batches(replace(FIRST, epoch=epoch + 1)))
    stream.close()


# --- the threads


def test_an_items_error_is_raised_in_its_place():
    def item(index):
        if index == 2:
            raise ValueError("broken")
        return index

    with ThreadPoolExecutor(2) as pool:
        made = Ahead(item, 5, num_ahead=2, pool=pool)
        made.begin(4)
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(ValueError, match="broken"):
            next(made)


def test_close_waits_for_what_is_being_made_and_makes_no_more():
    started, go, made = threading.Event(), threading.Event(), []

    def item(index):
        started.set()
        go.wait(30)
        made.append(index)

    with ThreadPoolExecutor(1) as pool:
        items = Ahead(item, 5, num_ahead=2, pool=pool)
        items.begin(3)
        started.wait(30)
        threading.Timer(0.1, go.set).start()
        items.close()
        assert made == [0]
        assert pool.submit(lambda: 7).result() == 7  # others may go on using the pool
    assert made == [0]


def test_slow_storage_is_told(monkeypatch, caplog):
    monkeypatch.setattr(ahead, "SLOW_S", 0.05)
    with ThreadPoolExecutor(1) as pool, caplog.at_level("WARNING", logger="voxray"):
        assert list(Ahead(lambda i: time.sleep(0.12) or i, 1, 1, pool)) == [0]
    assert "the dataset's storage is slow" in caplog.text
