"""A search stopped by Ctrl-C, then by kill -9 of its driver, and started again ends as one never stopped."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from voxray.cli.main import main
from voxray.tune.config import ObjectiveConfig, SamplerConfig, SearchConfig
from voxray.tune.space.config import Distribution
from voxray.tune.study.ledger import StudyLedger, StudyRules

NUM_TRIALS = 8


def start(space: str, storage: Path) -> subprocess.Popen:
    """Start the command in a session of its own, away from the terminal's signals."""
    command = [sys.executable, "-m", "voxray", "tune", space, f"storage.path={storage}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


def wait_for_trials(process: subprocess.Popen, number: int) -> list[str]:
    """Read the output until `number` trials were told to have ended."""
    lines = []
    while sum(line.startswith("trial ") for line in lines) < number:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(180)
def test_ctrl_c_then_kill_then_the_rest(space, tmp_path, capsys):
    process = start(space, tmp_path)
    wait_for_trials(process, 3)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"of {NUM_TRIALS} trials are done; run the same command to continue" in output
    assert "Traceback" not in output
    study = tmp_path / "Tiny" / "studies" / "tiny"
    after_sigint = Counter(trial.state.name for trial in trials_of(study))
    assert after_sigint["COMPLETE"] in (3, 4)
    assert after_sigint["RUNNING"] == 0

    process = start(space, tmp_path)
    wait_for_trials(process, 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)

    assert run_here(space, tmp_path) == 0
    assert f"experiment: {study / 'best.yaml'}" in capsys.readouterr().out
    complete = [trial for trial in trials_of(study) if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["index"] for trial in complete) == list(range(NUM_TRIALS))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == NUM_TRIALS
    assert {trial.state.name for trial in trials_of(study)} <= {"COMPLETE", "FAIL"}
    assert_as_never_interrupted(complete, tmp_path / "uninterrupted")

    assert run_here(space, tmp_path, "--json") == 0
    said = capsys.readouterr()
    assert f"is finished already: all {NUM_TRIALS} trials are done" in said.err
    rows = json.loads(said.out)
    assert [row["trial"] for row in rows] == list(range(NUM_TRIALS))
    assert all(row["val/loss"] > 0 and row["state"] == "complete" for row in rows)


def run_here(space: str, storage: Path, *more: str) -> int:
    """Run the same command in this process, which has a cluster already; return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(["tune", space, f"storage.path={storage}", *more])
    return end.value.code


def trials_of(study: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(study / "journal.log")))
    return optuna.load_study(study_name=study.name, storage=storage).get_trials()


def assert_as_never_interrupted(complete: list[optuna.trial.FrozenTrial], folder: Path) -> None:
    """Ask a fresh ledger for each trial, telling it what was measured: it suggests the same values."""
    folder.mkdir()
    space = {
        "training.learning_rate": Distribution(loguniform=(1e-4, 1e-1)),
        "model.hidden_dim": Distribution(choice=[8, 16]),
        "model.dropout": Distribution(uniform=(0.0, 0.5)),
    }
    objective = ObjectiveConfig(metric="val/loss", mode="min")
    search = SearchConfig(sampler=SamplerConfig(startup_trials=2), trials=NUM_TRIALS, space=space)
    ledger = StudyLedger(folder, StudyRules(search, (objective,)))
    for index, trial in enumerate(sorted(complete, key=lambda trial: trial.user_attrs["index"])):
        assert ledger.ask(index).values == trial.params
        assert len(trial.intermediate_values) == 3
        for step, value in trial.intermediate_values.items():
            ledger.report(index, {"step": step, "val/loss": value})
        ledger.finish(index)
