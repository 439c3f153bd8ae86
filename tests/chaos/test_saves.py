"""Saves that are killed and files that are damaged: a valid checkpoint always loads, damage is noticed."""

import contextlib
import multiprocessing
import random
import signal
import time

import pytest
import torch

from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.checkpoint import Best, Saver
from voxray.train.checkpoints.snapshot import snapshot

pytestmark = pytest.mark.chaos

NUM_KILLS = 50
NUM_TRIALS = 100
NUM_VALUES = 1 << 20  # of each tensor: three of 4 MB
EVERY_BEST = 3  # each third checkpoint is the best so far


def taken(step, num_values=NUM_VALUES):
    weight = torch.arange(num_values, dtype=torch.float32) + step
    moments = {"exp_avg": weight * 2, "exp_avg_sq": weight * 3}
    return snapshot(step, {"model": {"w": weight}}, {"step": step, "optimizer": moments}, {"seed": 1})


def save_for_ever(folder, pipe):
    """Save one checkpoint after the other from the newest on; say when each begins and when it is done."""
    torch.set_num_threads(1)
    saver = Saver(folder, keep=2, asynchronous=True, tell=lambda _: None)
    found = checkpoint.newest(folder, lambda text: pipe.send(("told", text)))
    step = checkpoint.load(found)[1]["step"] if found else 0
    while True:
        step += 1
        kept = taken(step)
        pipe.send(("begins", step))
        is_best = step % EVERY_BEST == 0
        saver.save(kept, Best("val/loss", 1 / step, "main", 0) if is_best else None)
        saver.wait()
        pipe.send(("done", step))


def after_first_save(pipe, rng):
    """Return (seconds that a save took, the last step that was done) and wait until another one has begun."""
    assert pipe.recv()[0] == "begins"
    before = time.monotonic()
    message, done = pipe.recv()
    assert message == "done"
    took = time.monotonic() - before
    for _ in range(rng.randrange(2)):
        assert pipe.recv()[0] == "begins"
        message, done = pipe.recv()
        assert message == "done"
    assert pipe.recv()[0] == "begins"
    return took, done


def test_a_valid_checkpoint_loads_after_each_of_50_kills(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["voxray.train.checkpoints.checkpoint"])
    rng = random.Random(0)
    cut_short, valid = 0, 0
    for _ in range(NUM_KILLS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(tmp_path, theirs))
        process.start()
        theirs.close()
        took, done = after_first_save(ours, rng)
        time.sleep(rng.uniform(0, took))
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
        with contextlib.suppress(EOFError):  # what it said before the signal came
            while True:
                message, step = ours.recv()
                done = step if message == "done" else done
        cut_short += any(tmp_path.glob(".step-*.partial-*"))

        found = checkpoint.newest(tmp_path, pytest.fail)
        assert found is not None
        tensors, state = checkpoint.load(found)
        assert state["step"] >= done
        expected = taken(state["step"])
        assert torch.equal(tensors["model"]["w"], expected.tensors["model"]["w"])
        for name, value in expected.state["optimizer"].items():
            assert torch.equal(state["optimizer"][name], value)
        best_ever = state["step"] // EVERY_BEST * EVERY_BEST
        best = checkpoint.best(tmp_path)
        assert (best.name if best else None) == (f"step-{best_ever:08d}" if best_ever else None)
        assert len(list(tmp_path.glob("step-*"))) <= 4  # two, the best, and one that was not pruned yet
        valid += 1
    print(f"\n{valid} of {NUM_KILLS} loaded; {cut_short} kills left a part of a save behind")
    assert valid == NUM_KILLS
    assert cut_short >= NUM_KILLS // 4  # the moments lie inside saves


def damage(checkpoint_folder, rng):
    """Flip a bit of a file, cut it short or remove it; return what was done."""
    file = rng.choice(sorted(checkpoint_folder.iterdir()))
    how = rng.choice(("flip", "truncate", "remove"))
    if how == "remove":
        file.unlink()
        return f"{how} {file.name}"
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        del data[rng.randrange(len(data)) :]
    file.write_bytes(data)
    return f"{how} {file.name}"


def test_damage_of_any_file_is_noticed_and_the_checkpoint_before_is_used(tmp_path):
    rng = random.Random(0)
    done, noticed = [], 0
    for trial in range(NUM_TRIALS):
        folder = tmp_path / str(trial)
        saver = Saver(folder, keep=2, asynchronous=False, tell=pytest.fail)
        for step in (1, 2):
            saver.save(taken(step, num_values=5_000), Best("val/loss", 1 / step, "main", 0))
        done.append(damage(folder / "step-00000002", rng))
        told = []
        found = checkpoint.newest(folder, told.append)
        assert found.name == "step-00000001", done[-1]
        assert checkpoint.best(folder) == found
        assert len(told) == 1
        assert checkpoint.load(found)[1]["step"] == 1
        noticed += 1
    kinds = {kind: sum(entry.startswith(kind) for entry in done) for kind in ("flip", "truncate", "remove")}
    print(f"\n{noticed} of {NUM_TRIALS} noticed: {kinds}")
    assert noticed == NUM_TRIALS
    assert len(set(done)) == 15  # each way on each of the five files
