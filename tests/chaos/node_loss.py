"""Train on a local cluster of several nodes of which some go and come back; a process of test_nodes.py.

python node_loss.py CASE DATASET RUNS NAME: CASE is `whole`, `lose` (a node goes and comes back, five times)
or `elastic` (one of two nodes goes, and later comes back).
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from voxray.cluster.connect import QUIET
from voxray.core.experiment import default_config
from voxray.testing.chaos import log_of, wait_for_step

EPOCHS, UPDATES_PER_EPOCH, NUM_LOSSES = 6, 50, 5
START_TIMEOUT_S = 15  # of a worker group on what is left of the cluster
CASES = {"whole": 2, "lose": 2, "elastic": [1, 2]}


def main(case: str, dataset: str, runs: str, name: str) -> None:
    """Start the cluster, train, stop the cluster."""
    os.environ.update(QUIET, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(START_TIMEOUT_S))
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]  # with the head, which holds no worker: three
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    run = Path(runs) / "SlowerTiny" / name
    try:
        # Nodes are added from the main thread alone, so it is the training that gets another one.
        with ThreadPoolExecutor(1) as pool:
            training = pool.submit(train, case, dataset, runs, name)
            if case != "whole":
                (lose if case == "lose" else shrink_and_grow)(cluster, nodes, run)
            training.result()
    finally:
        ray.shutdown()
        cluster.shutdown()


def train(case: str, dataset: str, runs: str, name: str) -> None:
    """Train the slow tiny task."""
    from voxray.train.launch import launch

    values = {
        "data.path": dataset,
        "storage.path": runs,
        "run.name": name,
        "model.dropout": 0.0 if case == "elastic" else 0.2,
        "model.batch_norm": True,
        "training.batch_size": 8,
        "training.optimizer": "sgd",  # rounding noise before BatchNorm stays small
        "training.epochs": EPOCHS,
        "scale.num_workers": CASES[case],
        "scale.resize_every_s": 5,
        "checkpoints.save_every_n_steps": 5,
        "logging.log_every_n_steps": 1,
    }
    launch(default_config("voxray.testing.chaos:SlowerTiny", values, "the test"), "auto", Console(quiet=True))


def lose(cluster, nodes, run: Path) -> None:
    """Take a node away at several updates, and add another one each time."""
    for number in range(NUM_LOSSES):
        wait_for_step(run, (number + 1) * EPOCHS * UPDATES_PER_EPOCH // (NUM_LOSSES + 2))
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))


def shrink_and_grow(cluster, nodes, run: Path) -> None:
    """Take one of two nodes away, and give it back when the run has gone on alone."""
    wait_for_step(run, EPOCHS * UPDATES_PER_EPOCH // 6)
    attempts = sum(record["kind"] == "workers" for record in log_of(run))
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    while sum(record["kind"] == "workers" for record in log_of(run)) == attempts:
        time.sleep(0.2)
    wait_for_step(run, EPOCHS * UPDATES_PER_EPOCH // 3)
    cluster.add_node(num_cpus=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
