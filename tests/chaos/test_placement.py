"""Trials of several workers that a scheduler stops give their resources back; Ray's own way does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

pytestmark = pytest.mark.chaos
SCRIPT = Path(__file__).parent / "placement.py"
NUM_TRIALS = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rows = {"train": tiny_rows(100, 1), "val": tiny_rows(50, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 50)


def seen(case: str, dataset: Path, folder: Path) -> dict:
    """What placement.py saw."""
    tests = SCRIPT.parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(SCRIPT), case, str(dataset), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_nested_trial_that_tune_stops_keeps_its_workers_places(dataset, tmp_path):
    """The deadlock of ray#54305, #58515 and #65447: if this turns red, Ray has mended it."""
    saw = seen("stock", dataset, tmp_path)
    assert saw == {"left by Ray": 1, "orphans": 1, "given back": 1, "left": 0, "are all CPUs free": True}


@pytest.mark.parametrize(("executor", "num_groups"), [("gang", 1), ("train", 2)])
def test_ten_stopped_trials_give_their_places_back(executor, num_groups, dataset, tmp_path):
    """At each report there are the trial's own groups and no other: Tune's, and in `train` Ray Train's."""
    saw = seen(executor, dataset, tmp_path)
    assert saw["ends"] == ["pruned"] * NUM_TRIALS
    assert saw["held"] == [num_groups] * NUM_TRIALS
    assert saw["leaked"] == [0] * NUM_TRIALS
    assert (saw["left"], saw["are all CPUs free"]) == (0, True)


def test_a_stopped_trial_whose_workers_hang_is_ended(dataset, tmp_path):
    saw = seen("hang", dataset, tmp_path)
    assert saw["ends"] == ["pruned"] * 2
    assert saw["held"] == [2, 2]
    assert saw["leaked"] == [0, 0]
    assert (saw["left"], saw["are all CPUs free"]) == (0, True)
