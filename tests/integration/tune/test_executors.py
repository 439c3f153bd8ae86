"""Trials on a real Ray cluster by each executor: the same losses, reused processes, what a crash leaves."""

import os
import signal
from pathlib import Path

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from few_trials import EPOCHS, Notes, StopAll, Trials
from voxray.core import collectives
from voxray.testing.chaos import log_of
from voxray.train.checkpoints import checkpoint
from voxray.train.log_tail import LogTail
from voxray.train.worker import train_here
from voxray.tune.executors.groups import give_back, orphans
from voxray.tune.executors.ray_train import evaluations
from voxray.tune.job import OUTCOME, Job, Run
from voxray.tune.ledger import Suggestion

pytestmark = pytest.mark.usefixtures("ray_cluster")


def losses(ledger: Notes, index: int) -> list[float]:
    return [report["val/loss"] for report in ledger.reports[index]]


@pytest.fixture(scope="module")
def alone(tiny_dataset, tmp_path_factory) -> list[list[float]]:
    """The losses of two trials trained in this process, by the loop itself."""
    trials = Trials(tiny_dataset, tmp_path_factory.mktemp("alone"), "inline")
    found: list[list[float]] = [[], []]
    for index in range(2):
        train_here(
            trials.config(index),
            trials.folder / f"{index}",
            lambda m, i=index: found[i].append(m["val/loss"]),
        )
    return found


@pytest.mark.parametrize(
    ("executor", "workers"),
    [
        ("inline", 1),
        pytest.param("gang", 1, marks=pytest.mark.chaos),
        pytest.param("gang", 2, marks=pytest.mark.chaos),
        pytest.param("train", 2, marks=pytest.mark.chaos),
    ],
)
def test_every_executor_trains_the_same(executor, workers, alone, tiny_dataset, tmp_path):
    trials = Trials(tiny_dataset, tmp_path, executor, **{"scale.num_workers": workers})
    ledger = Notes(2)
    assert trials.run(ledger, most=1)
    assert ledger.ends == {0: "complete", 1: "complete"}
    for index in range(2):
        assert losses(ledger, index) == pytest.approx(alone[index], abs=1e-6)
        first = ledger.reports[index][0]
        assert (first["epoch"], first["step"], first["epochs"], first["voxray_run"]) == (1, 5, 1, 0)
        assert trials.folder_of(index).is_finished()
        assert [worker["world_size"] for worker in trials.workers_of(index)] == [workers] * workers
    if executor != "train":  # both trials in the same processes
        assert trials.pids_of(0) == trials.pids_of(1)
        assert len(set(trials.pids_of(0))) == workers
    assert not (tmp_path / "ray").exists()


def test_a_stopped_trial_ends_there_and_leaves_its_actor_to_the_next(tiny_dataset, tmp_path):
    trials, ledger, scheduler = Trials(tiny_dataset, tmp_path, "inline"), Notes(3), StopAll()
    assert trials.run(ledger, scheduler, most=1)
    assert ledger.ends == dict.fromkeys(range(3), "pruned")
    assert [result["epoch"] for result in scheduler.seen] == [1, 1, 1]
    assert len({result["pid"] for result in scheduler.seen}) == 1
    for index in range(3):
        records = trials.folder_of(index).records()
        assert [record["step"] for record in records if record["kind"] == "epoch"] == [5]
        assert checkpoint.last(trials.folder_of(index).checkpoints).name == "step-00000005"


def test_a_runs_log_tells_its_evaluations_as_the_loop_reports_them(tiny_dataset, tmp_path):
    stages = [{"name": "a", "epochs": 2}, {"name": "b", "epochs": 2, "validate_every": {"steps": 2}}]
    trials = Trials(tiny_dataset, tmp_path, "inline", stages=stages)
    told: list[dict[str, float]] = []
    train_here(trials.config(), trials.folder_of(0).path, told.append)
    read = list(evaluations(LogTail(trials.folder_of(0).log_file)))
    assert len(told) == 7
    assert read == told


def test_the_placement_group_of_a_dead_actor_is_given_back():
    """What we read of Ray's private state, in this version of it."""
    import ray
    from ray.util import placement_group, placement_group_table

    @ray.remote(num_cpus=0)
    class Maker:
        def make(self) -> str:
            return placement_group([{"CPU": 1}] * 4).id.hex()

    own = placement_group([{"CPU": 1}])
    maker = Maker.remote()
    theirs = ray.get(maker.make.remote())
    assert orphans() == []
    ray.kill(maker)
    assert give_back() == 1
    ray.util.remove_placement_group(own)
    assert placement_group_table()[theirs]["state"] == "REMOVED"
    assert orphans() == []


class PauseAll(FIFOScheduler):
    """Pauses every trial after each report, and lets the longest paused one go on."""

    def on_trial_result(self, tune_controller, trial, result) -> str:
        return TrialScheduler.CONTINUE if OUTCOME in result else TrialScheduler.PAUSE

    def choose_trial_to_run(self, tune_controller):
        trials = tune_controller.get_trials()
        if any(trial.status == "RUNNING" for trial in trials):
            return None
        paused = [trial for trial in trials if trial.status == "PAUSED"]
        return min(paused, key=lambda trial: len(trial.metric_analysis), default=None)


def test_paused_trials_go_on_where_they_were(alone, tiny_dataset, tmp_path):
    trials, ledger = Trials(tiny_dataset, tmp_path, "inline"), Notes(2)
    assert trials.run(ledger, PauseAll(), most=1)
    assert ledger.ends == {0: "complete", 1: "complete"}
    for index in range(2):
        assert losses(ledger, index) == alone[index]
        resumed = [r["step"] for r in log_of(tmp_path / f"{index}") if r["kind"] == "resume"]
        assert resumed == [5, 10, 15]


def test_each_seed_is_a_run_and_a_finished_one_is_not_trained_again(tiny_dataset, tmp_path):
    trials, ledger = Trials(tiny_dataset, tmp_path, "inline"), Notes(2)

    def job(suggestion: Suggestion) -> Job:
        runs = tuple(Run(tmp_path / f"seed{n}", trials.config(**{"training.seed": n})) for n in (7, 8))
        return Job(suggestion.index, runs, "inline")

    trials.job = job
    assert trials.run(ledger, most=1)
    assert ledger.ends == {0: "complete", 1: "complete"}
    assert [(r["voxray_run"], r["epoch"]) for r in ledger.reports[0]] == [
        (n, e) for n in (0, 1) for e in (1, 2, 3)
    ]
    assert len(set(losses(ledger, 0))) == 2 * EPOCHS
    assert ledger.reports[1] == []


def test_what_ends_a_gang_fails_one_trial_alone(alone, tiny_dataset, tmp_path):
    """Trial 1 raises on both workers alike, 3 on one while the other waits for it."""

    def train(config, run_dir: Path, report, control) -> None:
        rank, index = collectives.rank(), int(run_dir.name)
        if index == 1 or (index == 3 and rank == 1):
            raise ValueError(f"no good {index}")
        train_here(config, run_dir, report, control)

    trials, ledger = Trials(tiny_dataset, tmp_path, "gang", **{"scale.num_workers": 2}), Notes(5)
    assert trials.run(ledger, train=train, most=1)
    bad = {1: "ValueError: no good 1", 3: "ValueError: no good 3"}
    assert ledger.ends == {**dict.fromkeys(range(5), "complete"), **bad}
    assert "ValueError: no good 3" in (tmp_path / "3" / "error.txt").read_text()
    assert losses(ledger, 0) == pytest.approx(alone[0], abs=1e-6)
    assert [worker["world_size"] for worker in trials.workers_of(0)] == [2, 2]
    assert trials.pids_of(0) == trials.pids_of(2)  # all failed alike, so the group of processes is as it was
    assert not set(trials.pids_of(2)) & set(trials.pids_of(4))


@pytest.mark.chaos
def test_a_gang_whose_worker_is_killed_goes_on_once(alone, tiny_dataset, tmp_path):
    def train(config, run_dir: Path, report, control) -> None:
        def report_or_die(numbers: dict[str, float]) -> None:
            deaths = len(list(tmp_path.glob(f"death-{run_dir.name}-*")))
            if numbers["epoch"] >= 2 and collectives.rank() == 1 and deaths <= int(run_dir.name):
                (tmp_path / f"death-{run_dir.name}-{deaths}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report(numbers)

        train_here(config, run_dir, report_or_die, control)

    trials, ledger = Trials(tiny_dataset, tmp_path, "gang", **{"scale.num_workers": 2}), Notes(2)
    assert trials.run(ledger, train=train, most=1)
    assert ledger.ends == {0: "complete", 1: "its process died, twice (out of memory?)"}
    epochs = [record for record in trials.folder_of(0).records() if record["kind"] == "epoch"]
    assert [record["val/loss"] for record in epochs] == pytest.approx(alone[0], abs=1e-6)


@pytest.mark.chaos
@pytest.mark.parametrize(("executor", "workers"), [("inline", 1), ("gang", 2)])
def test_trials_that_read_through_ray_data_leave_it_a_cpu(executor, workers, alone, tiny_dataset, tmp_path):
    """Its tasks run outside of the trials' placement groups, in which every CPU is a worker's."""
    trials = Trials(
        tiny_dataset, tmp_path, executor, **{"scale.num_workers": workers, "data.transport": "stream"}
    )
    ledger = Notes(2)
    assert trials.run(ledger, reads=True)
    assert ledger.ends == {0: "complete", 1: "complete"}
    for index in range(2):
        assert losses(ledger, index) == pytest.approx(alone[index], abs=1e-6)
