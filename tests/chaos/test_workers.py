"""SIGKILL of training workers on Ray: the run ends with the weights of the run that nobody touched."""

import hashlib
import random
import threading
from pathlib import Path

import pytest
from rich.console import Console

from voxray.core.experiment import default_config
from voxray.testing.chaos import SlowTiny, kill_worker, log_of, wait_for_step
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.launch import launch
from voxray.train.run_folder import RunFolder

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("ray_cluster")]
NUM_KILLS = 20
EPOCHS, UPDATES_PER_EPOCH = 5, 50


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rows = {"train": tiny_rows(400, 1), "val": tiny_rows(50, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", SlowTiny(TinyConfig()).schema(), rows, 200)


def config(dataset: Path, runs: Path, name: str, **more):
    values = {
        "data.path": str(dataset),
        "storage.path": str(runs),
        "run.name": name,
        "model.dropout": 0.2,
        "model.batch_norm": True,
        "training.batch_size": 8,
        "training.epochs": EPOCHS,
        "training.clip_grad_norm": 1.0,
        "scale.num_workers": 2,
        "checkpoints.save_every_n_steps": 5,
        "logging.log_every_n_steps": 1,
        **more,
    }
    return default_config("voxray.testing.chaos:SlowTiny", values, "the test")


def final_hash(run: RunFolder) -> str:
    file = checkpoint.last(run.checkpoints) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_twenty_killed_workers_change_nothing(dataset, tmp_path):
    whole = launch(config(dataset, tmp_path, "whole"), "auto", Console(quiet=True))
    chosen = random.Random(20)
    steps = sorted(chosen.sample(range(5, EPOCHS * UPDATES_PER_EPOCH - 5), NUM_KILLS))
    run = RunFolder(tmp_path / "SlowTiny" / "cut")
    killed: list[int] = []

    def killer() -> None:
        for step in steps:
            wait_for_step(run.path, step)
            killed.append(kill_worker(run.path, chosen.randrange(2)))

    thread = threading.Thread(target=killer)
    thread.start()
    launch(config(dataset, tmp_path, "cut"), "auto", Console(quiet=True))
    thread.join()
    assert len(killed) == NUM_KILLS
    attempts = sum(record["kind"] == "workers" for record in log_of(run.path))
    assert attempts - 1 <= NUM_KILLS
    assert final_hash(run) == final_hash(whole)
    steps_logged = [record["step"] for record in run.records() if record["kind"] == "step"]
    assert steps_logged == list(range(1, EPOCHS * UPDATES_PER_EPOCH + 1))
