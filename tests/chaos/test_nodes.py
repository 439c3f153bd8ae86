"""Nodes that go and come back: a run of fixed size ends with the same weights, an elastic one adapts."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from voxray.testing.chaos import SlowTiny, log_of
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.run_folder import RunFolder

pytestmark = pytest.mark.chaos
SCRIPT = Path(__file__).parent / "node_loss.py"
NUM_UPDATES = 300


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rows = {"train": tiny_rows(400, 1), "val": tiny_rows(50, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", SlowTiny(TinyConfig()).schema(), rows, 200)


def trained(case: str, dataset: Path, runs: Path) -> RunFolder:
    command = [sys.executable, str(SCRIPT), case, str(dataset), str(runs), case]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return RunFolder(runs / "SlowerTiny" / case)


def updates(run: RunFolder) -> list[tuple]:
    return [(r["step"], r["epoch"], r["batch"]) for r in run.records() if r["kind"] == "step"]


def losses(run: RunFolder) -> list[float]:
    return [r["train/loss"] for r in run.records() if r["kind"] == "step"]


def final_hash(run: RunFolder) -> str:
    return hashlib.sha256((checkpoint.last(run.checkpoints) / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_that_loses_five_nodes_is_the_one_that_lost_none(dataset, tmp_path):
    whole, cut = trained("whole", dataset, tmp_path), trained("lose", dataset, tmp_path)
    assert sum(record["kind"] == "resume" for record in log_of(cut.path)) >= 2
    assert updates(cut) == updates(whole)
    assert final_hash(cut) == final_hash(whole)


def test_an_elastic_run_goes_down_and_comes_back_up(dataset, tmp_path):
    run = trained("elastic", dataset, tmp_path)
    sizes = [len(record["workers"]) for record in log_of(run.path) if record["kind"] == "workers"]
    assert (sizes[0], min(sizes), sizes[-1]) == (2, 1, 2), sizes
    assert [step for step, _, _ in updates(run)] == list(range(1, NUM_UPDATES + 1))
    alone = RunFolder(tmp_path / "alone")
    reference(dataset, alone)
    assert updates(run) == updates(alone)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-4, atol=1e-6)


def reference(dataset: Path, run: RunFolder) -> None:
    """The same run in this process, by one worker."""
    from voxray.train.worker import train_here

    values = {
        "task": "voxray.testing.chaos:SlowTiny",
        "data": {"path": str(dataset)},
        "model": {"batch_norm": True},
        "training": {"batch_size": 8, "epochs": 6, "optimizer": "sgd"},
        "logging": {"log_every_n_steps": 1},
    }
    train_here(TinyConfig.model_validate(values), run.path, lambda metrics: None)
