"""Train and search on a cluster whose autoscaler adds nodes; a driver of test_autoscaling.py.

python autoscaling.py CASE DATASET RUNS: CASE is `train` (four workers), `sweep` (six trials; DATASET is a
space file) or `elastic` (one to three workers). Prints what it saw as a JSON object once all added nodes are
gone again: `nodes`, how many there were from which second on, and of a sweep `said` and `ran_on`.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from voxray.cluster.connect import connect
from voxray.core.experiment import default_config

ELASTIC_EPOCHS = 7  # of 50 updates: long enough to get two nodes and lose one
POLL_S = 0.25
START_TIMEOUT_S = 15  # of a worker group on what is left of the cluster
GIVEN_BACK_WITHIN_S = 120


class Sampler(threading.Thread):
    """Notes how many nodes there are, whenever that changes, and prints it to stderr."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.began = time.monotonic()
        self.seen: list[tuple[float, int]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        import ray

        while not self.ended.wait(POLL_S):
            num = sum(node["Alive"] for node in ray.nodes())
            if not self.seen or self.seen[-1][1] != num:
                self.seen.append((round(time.monotonic() - self.began, 1), num))
                print(f"{self.seen[-1][0]:6.1f} s: {num} nodes", file=sys.stderr, flush=True)

    def wait_for_one(self) -> None:
        until = time.monotonic() + GIVEN_BACK_WITHIN_S
        while self.seen[-1][1] != 1 and time.monotonic() < until:
            time.sleep(POLL_S)
        self.ended.set()
        self.join()


def main(case: str, dataset: str, runs: str) -> None:
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_TIMEOUT_S)
    with connect():
        sampler = Sampler()
        sampler.start()
        saw = sweep(dataset, runs) if case == "sweep" else train(case, dataset, runs)
        print(f"{time.monotonic() - sampler.began:6.1f} s: {case} has ended", file=sys.stderr, flush=True)
        sampler.wait_for_one()
        print(json.dumps({**saw, "nodes": sampler.seen}))


def train(case: str, dataset: str, runs: str) -> dict:
    from voxray.train.launch import launch

    values = {
        "data.path": dataset,
        "storage.path": runs,
        "run.name": case,
        "model.batch_norm": True,
        "training.batch_size": 12,
        "training.optimizer": "sgd",
        "training.epochs": ELASTIC_EPOCHS if case == "elastic" else 1,
        "scale.num_workers": [1, 3] if case == "elastic" else 4,
        "scale.resize_every_s": 5,
        "checkpoints.save_every_n_steps": 5,
        "logging.log_every_n_steps": 1,
    }
    resolved = default_config("voxray.testing.chaos:SlowerTiny", values, "the test")
    launch(resolved, "auto", Console(quiet=True))
    return {}


def sweep(space: str, runs: str) -> dict:
    import ray

    from voxray.train.worker import train_here
    from voxray.tune.plan import load_plan
    from voxray.tune.search import search
    from voxray.tune.study.folder import open_study

    def noting(config, run_dir: Path, report, control) -> None:
        (run_dir / "node").write_text(ray.get_runtime_context().get_node_id())
        train_here(config, run_dir, report, control)

    plan = load_plan(space, [f"storage.path={runs}"])
    said: list[str] = []
    with open_study(plan) as ledger:
        search(plan, ledger, noting, said.append, lambda row: None)
        ended = {row.index: row.state for row in ledger.rows()}
    ran_on = [(plan.trial_folder(index) / "node").read_text() for index in ended]
    return {"said": said, "ended": list(ended.values()), "ran_on": ran_on}


if __name__ == "__main__":
    main(*sys.argv[1:])
