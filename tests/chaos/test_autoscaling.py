"""A run and a sweep that ask for more than the head has: nodes come, are used, and go when nothing runs."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from autoscaling import ELASTIC_EPOCHS
from fake_cluster import FakeCluster, fake_cluster

from voxray.testing.chaos import SlowTiny, log_of
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import TinyConfig, tiny_rows
from voxray.train.run_folder import RunFolder

pytestmark = pytest.mark.chaos
SCRIPT = Path(__file__).parent / "autoscaling.py"
WITHIN_S = 400
NUM_TRIALS = 6
SPACE = """
description: on nodes that are not there yet
experiment: base.yaml
objective: {{metric: val/loss, mode: min}}
search:
  trials: {num_trials}
  space:
    training.learning_rate: {{loguniform: [1e-4, 1e-1]}}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    rows = {"train": tiny_rows(600, 1), "val": tiny_rows(48, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", SlowTiny(TinyConfig()).schema(), rows, 200)


def seen(driver: subprocess.Popen[str]) -> dict:
    """Wait for a driver; return what it saw."""
    out, err = driver.communicate(timeout=WITHIN_S)
    print(err[-3000:])
    assert driver.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def sizes(saw: dict) -> list[int]:
    """How many nodes there were, one after the other; two that come together may be seen one by one."""
    return [num for _, num in saw["nodes"]]


def workers(run: Path) -> list[int]:
    return [len(record["workers"]) for record in log_of(run) if record["kind"] == "workers"]


def test_a_run_of_four_workers_makes_nodes_come_and_go(dataset, tmp_path):
    with fake_cluster(head_cpus=0, node_cpus=2, most_nodes=2) as cluster:
        saw = seen(cluster.start(SCRIPT, "train", dataset, tmp_path))
    assert (sizes(saw)[0], max(sizes(saw)), sizes(saw)[-1]) == (1, 3, 1)
    run = RunFolder(tmp_path / "SlowerTiny/train")
    assert run.is_finished()
    assert workers(run.path) == [4]


def test_the_trials_of_a_sweep_spread_over_the_nodes_that_come(dataset, tmp_path):
    (tmp_path / "base.yaml").write_text(
        f"task: voxray.testing.chaos:SlowTiny\ndata: {{path: {dataset}}}\ntraining: {{epochs: 3}}\n"
    )
    (tmp_path / "six.yaml").write_text(SPACE.format(num_trials=NUM_TRIALS))
    with fake_cluster(head_cpus=0, node_cpus=2, most_nodes=2) as cluster:
        saw = seen(cluster.start(SCRIPT, "sweep", tmp_path / "six.yaml", tmp_path / "runs"))
    assert (sizes(saw)[0], max(sizes(saw)), sizes(saw)[-1]) == (1, 3, 1)
    assert "4 at a time (inline, 1 CPU each; 4 fit with 2 nodes of the autoscaler" in saw["said"][0]
    assert saw["ended"] == ["complete"] * NUM_TRIALS
    assert len(set(saw["ran_on"])) == 2


def test_an_elastic_run_grows_and_shrinks_with_the_nodes(dataset, tmp_path):
    """One worker on the head; two more when nodes have come; one fewer when one of them is lost.

    Ray's fake provider brings no other one (none came in three minutes); growing again is in test_nodes.py.
    """
    run = tmp_path / "SlowerTiny/elastic"
    with fake_cluster(head_cpus=1, node_cpus=1, most_nodes=2) as cluster:
        driver = cluster.start(SCRIPT, "elastic", dataset, tmp_path)
        wait_for_workers(run, 3, driver)
        lose_a_node(cluster)
        saw = seen(driver)
    was = workers(run)
    print(f"workers: {was}")
    assert (was[0], max(was), was[-1]) == (1, 3, 2)
    assert (sizes(saw)[0], max(sizes(saw)), sizes(saw)[-1]) == (1, 3, 1)
    steps = [record for record in RunFolder(run).records() if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 50 * ELASTIC_EPOCHS + 1))
    alone = reference(dataset, tmp_path / "alone")
    np.testing.assert_allclose([record["train/loss"] for record in steps], alone, rtol=1e-4, atol=1e-6)


def wait_for_workers(run: Path, num: int, driver: subprocess.Popen[str]) -> None:
    """Wait until an attempt of so many workers has made an update."""
    until = time.monotonic() + WITHIN_S / 2
    while not (num in workers(run) and log_of(run)[-1]["kind"] == "step"):
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        assert time.monotonic() < until, f"{workers(run)}, and {num} did not come"
        time.sleep(0.2)


def lose_a_node(cluster: FakeCluster) -> None:
    os.kill(cluster.raylets()[0].pid, signal.SIGKILL)


def reference(dataset: Path, folder: Path) -> list[float]:
    """The losses of the same run in this process, by one worker."""
    from voxray.train.worker import train_here

    values = {
        "task": "voxray.testing.tiny:Tiny",
        "data": {"path": str(dataset)},
        "model": {"batch_norm": True},
        "training": {"batch_size": 12, "epochs": ELASTIC_EPOCHS, "optimizer": "sgd"},
        "logging": {"log_every_n_steps": 1},
    }
    train_here(TinyConfig.model_validate(values), folder, lambda metrics: None)
    return [record["train/loss"] for record in RunFolder(folder).records() if record["kind"] == "step"]
