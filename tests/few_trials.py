"""A few trials of the tiny task, by any executor: a ledger in memory, jobs, a scheduler that stops all."""

from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from voxray.core.experiment import default_config
from voxray.train.run_folder import RunFolder
from voxray.train.worker import train_here
from voxray.tune.config import ObjectiveConfig
from voxray.tune.executors.resources import fit_trials
from voxray.tune.job import OUTCOME, Job, Run
from voxray.tune.ledger import Suggestion, TrialRow
from voxray.tune.tuner import run_trials

EPOCHS = 3


class Notes:
    """A ledger in memory: what was reported of each trial, and how it ended."""

    objectives = (ObjectiveConfig(metric="val/loss", mode="min"),)

    def __init__(self, num_trials: int) -> None:
        self.left = list(range(num_trials))
        self.reports: dict[int, list[dict[str, Any]]] = {index: [] for index in self.left}
        self.ends: dict[int, str] = {}

    def remaining(self) -> list[int]:
        return list(self.left)

    def ask(self, index: int) -> Suggestion:
        self.left.remove(index)
        return Suggestion(index, {})

    def report(self, index: int, record) -> None:
        self.reports[index].append(dict(record))

    def finish(self, index: int, job: Job) -> TrialRow:
        return self._end(index, "complete")

    def crash(self, index: int, reason: str) -> TrialRow:
        return self._end(index, "fail", reason)

    def stop(self, index: int) -> TrialRow:
        return self._end(index, "pruned")

    def cut_short(self) -> list[int]:
        return []

    def rows(self) -> list[TrialRow]:
        return []

    def _end(self, index: int, state: str, reason: str = "") -> TrialRow:
        self.ends[index] = reason or state
        return TrialRow(index, state, None, None, 0.0, {}, reason)


class StopAll(FIFOScheduler):
    """Stops every trial after its first report, and keeps that."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def on_trial_result(self, tune_controller, trial, result) -> str:
        if OUTCOME in result:
            return TrialScheduler.CONTINUE
        self.seen.append(dict(result))
        return TrialScheduler.STOP


class Trials:
    """Makes the jobs of a few trials of the tiny task."""

    task = "voxray.testing.tiny:Tiny"

    def __init__(self, dataset: Path, folder: Path, executor: str, **values) -> None:
        self.executor, self.folder = executor, folder
        self.values = {
            "data.path": str(dataset),
            "training.epochs": EPOCHS,
            "training.batch_size": 20,
            "training.optimizer": "sgd",
            **values,
        }

    def config(self, index: int = 0, **more):
        rate = {"training.learning_rate": 0.01 * (index + 1)}
        values = {**self.values, **rate, **more}
        return default_config(self.task, values, "the test").config

    def folder_of(self, index: int) -> RunFolder:
        return RunFolder(self.folder / f"{index}")

    def workers_of(self, index: int) -> list[dict[str, Any]]:
        return next(r["workers"] for r in self.folder_of(index).records() if r["kind"] == "workers")

    def pids_of(self, index: int) -> list[int]:
        return [worker["pid"] for worker in self.workers_of(index)]

    def job(self, suggestion: Suggestion) -> Job:
        index = suggestion.index
        return Job(index, (Run(self.folder / f"{index}", self.config(index)),), self.executor)

    def run(
        self, ledger: Notes, scheduler=None, train=train_here, most: int | None = None, reads=False
    ) -> bool:
        import ray

        fitting = fit_trials(
            [self.config().scale], self.executor, ray.nodes(), most_at_a_time=most, reads=reads, place="here"
        )
        return run_trials(ledger, self.job, train, fitting, scheduler, self.folder / "ray", lambda row: None)
