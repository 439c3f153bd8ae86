"""Saving beside training: one save at a time, failures that are raised, a full disk that loses nothing."""

import errno
import os
import shutil
import subprocess
import threading
import time

import pytest
import torch

from voxray.config.errors import RunError
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.checkpoint import Saver
from voxray.train.checkpoints.snapshot import snapshot


def taken(step, size=50):
    model = {"w": torch.full((size,), float(step)), "b": torch.arange(7)}
    return snapshot(step, {"model": model}, {"step": step, "moment": torch.ones(3)}, {"seed": 1})


def write(folder, step):
    return checkpoint.write(folder, taken(step))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(saver, step):
    saver.save(taken(step))


def save_two(saver):
    save(saver, 1)
    save(saver, 2)


def save_and_wait(saver):
    save(saver, 1)
    saver.wait()


def save_until_full(saver):
    for step in range(1, 9):
        saver.save(taken(step, size=1 << 20))


def test_a_save_returns_before_it_is_written_and_the_second_waits(tmp_path, monkeypatch):
    go, order = threading.Event(), []
    real = checkpoint.write

    def slow(folder, kept, *marks):
        order.append(kept.step)
        go.wait(10)
        return real(folder, kept, *marks)

    monkeypatch.setattr(checkpoint, "write", slow)
    saver = Saver(tmp_path, keep=2, asynchronous=True, tell=print)
    save(saver, 1)
    assert not list(tmp_path.glob("step-*"))
    second = threading.Thread(target=save, args=(saver, 2))
    second.start()
    time.sleep(0.05)
    assert order == [1]
    go.set()
    second.join()
    saver.wait()
    assert order == [1, 2]
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("surfaces_at", ["save", "wait"])
def test_a_failure_of_the_thread_is_raised_once(tmp_path, monkeypatch, asynchronous, surfaces_at):
    saver = Saver(tmp_path, keep=2, asynchronous=asynchronous, tell=print)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "read_manifest", lambda _: 1 / 0)
        with pytest.raises(RunError, match="could not be written"):
            save_two(saver) if surfaces_at == "save" else save_and_wait(saver)
    saver.wait()
    save(saver, 3)
    saver.wait()
    assert checkpoint.last(tmp_path).name == "step-00000003"


def test_an_estimate_counts_the_save_that_is_going_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MEASURED_FROM_BYTES", 0)
    clock = iter([0.0, 2.0])
    saver = Saver(tmp_path, keep=2, asynchronous=False, tell=print)
    assert saver.estimate_seconds(0) == checkpoint.SECONDS_PER_SAVE
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(clock, 2.0))
    saver.save(taken(1, size=1000))
    rate = taken(1, size=1000).num_bytes / 2.0
    assert saver.estimate_seconds(10_000) == pytest.approx(10_000 / rate + checkpoint.SECONDS_PER_SAVE)
    saver._bytes_in_flight = 5_000
    assert saver.estimate_seconds(10_000) == pytest.approx(15_000 / rate + checkpoint.SECONDS_PER_SAVE)


# A full disk


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write_tensors", "write_manifest", "fsync_folder"])
def test_a_save_that_meets_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, where):
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoint, where, no_space)
    with pytest.raises(RunError, match=r"step 2 needs \d+ MB in .* MB are free .* make room") as raised:
        write(tmp_path, 2)
    assert str(tmp_path) in str(raised.value)
    monkeypatch.undo()
    assert [name for name in names(tmp_path) if name != "step-00000002"] == ["step-00000001"]
    assert checkpoint.newest(tmp_path, print) is not None


def test_a_save_that_cannot_fit_is_refused_before_it_writes(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 3 << 20))
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *_, **__: pytest.fail("it wrote"))
    with pytest.raises(RunError, match="where 3 MB are free"):
        write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_another_trouble_with_the_disk_is_told_too(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"step 1 could not be written to .*file"):
        write(tmp_path / "file", 1)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_disk_that_is_really_full_stops_the_run_and_loses_nothing(small_disk, monkeypatch, foreseen):
    if not foreseen:
        monkeypatch.setattr(checkpoint, "_require_space", lambda *_: None)
    folder = small_disk / "checkpoints"
    saver = Saver(folder, keep=5, asynchronous=True, tell=print)
    with pytest.raises(RunError, match="make room and give the same command again"):
        save_until_full(saver)
    last = checkpoint.newest(folder, print)
    number = int(last.name[5:])
    assert number >= 4
    assert names(folder) == [f"step-{step:08d}" for step in range(1, number + 1)]
    shutil.rmtree(folder / "step-00000001")
    shutil.rmtree(folder / "step-00000002")
    saver.save(taken(9, size=1 << 20))
    saver.wait()
    assert torch.equal(checkpoint.load(checkpoint.last(folder))[0]["model"]["w"], torch.full((1 << 20,), 9.0))
