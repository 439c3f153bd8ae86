"""SIGKILL of the driver: the same command goes on, and the run is the one that was never stopped."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

pytestmark = pytest.mark.chaos

EXPERIMENT = """
task: voxray.testing.tiny:Tiny
description: long enough to be killed
data: {path: dataset}
model: {dropout: 0.2, batch_norm: true}
training: {epochs: 40, batch_size: 4}
"""


def start(folder, name):
    command = [sys.executable, "-m", "voxray", "train", "own.yaml", f"run.name={name}"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def log(folder, name):
    file = folder / "runs" / "Tiny" / name / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def final_weights(folder, name):
    checkpoints = sorted((folder / "runs" / "Tiny" / name / "checkpoints").glob("step-*"))
    return hashlib.sha256((checkpoints[-1] / "model.safetensors").read_bytes()).hexdigest()


def after_epochs(process, folder, name, num_epochs):
    """Wait until a run has logged so many epochs."""
    while sum(record["kind"] == "epoch" for record in log(folder, name)) < num_epochs:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own.yaml").write_text(EXPERIMENT)
    rows = {"train": tiny_rows(400, 1), "val": tiny_rows(50, 2)}
    write_dataset(tmp_path / "dataset", Tiny(TinyConfig()).schema(), rows, 200)
    return tmp_path


def test_ctrl_c_ends_a_run_with_130_and_says_how_to_go_on(folder):
    process = start(folder, "cut")
    after_epochs(process, folder, "cut", 3)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in output
    assert "Traceback" not in output


def test_a_killed_driver_goes_on_and_ends_with_the_same_weights(folder):
    whole = start(folder, "whole")
    assert whole.wait(300) == 0, whole.stdout.read()

    cut = start(folder, "cut")
    after_epochs(cut, folder, "cut", 5)
    os.kill(cut.pid, signal.SIGKILL)
    cut.wait(30)
    time.sleep(5)  # Ray's processes notice that their driver is gone
    again = start(folder, "cut")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    assert "resumed from step-" in output
    assert sum(record["kind"] == "resume" for record in log(folder, "cut")) == 1
    assert final_weights(folder, "cut") == final_weights(folder, "whole")
