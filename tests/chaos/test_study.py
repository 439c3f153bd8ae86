"""A driver killed after 7 of 20 trials, five times: the same command ends with 20 trials, none twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.tune.config import ObjectiveConfig, SamplerConfig, SearchConfig
from voxray.tune.space.config import Distribution
from voxray.tune.study.ledger import StudyLedger, StudyRules

pytestmark = pytest.mark.chaos

NUM_TRIALS, KILLED_AFTER = 20, 7
EXPERIMENT = """
task: voxray.testing.tiny:Tiny
data: {{path: {dataset}}}
training: {{epochs: 2, batch_size: 25}}
"""
SPACE = """
experiment: base.yaml
objective: {metric: val/loss, mode: min}
search:
  sampler: {startup_trials: 4}
  trials: 20
  space:
    training.optimizer: {choice: [adamw, sgd]}
    training.learning_rate: {loguniform: [1e-4, 1e-1]}
    training.momentum: {uniform: [0.5, 0.95], when: {training.optimizer: sgd}}
    model.hidden_dim: {choice: [8, 16]}
"""
DRAWN = {
    "training.optimizer": Distribution(choice=["adamw", "sgd"]),
    "training.learning_rate": Distribution(loguniform=(1e-4, 1e-1)),
    "training.momentum": Distribution(uniform=(0.5, 0.95), when={"training.optimizer": "sgd"}),
    "model.hidden_dim": Distribution(choice=[8, 16]),
}


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    rows = {"train": tiny_rows(50, 1), "val": tiny_rows(50, 2)}
    dataset = write_dataset(folder / "tiny", Tiny(TinyConfig()).schema(), rows, 50)
    (folder / "base.yaml").write_text(EXPERIMENT.format(dataset=dataset))
    (folder / "twenty.yaml").write_text(SPACE)
    return folder / "twenty.yaml"


def start(space: Path, storage: Path, seed: int, at_a_time: int) -> subprocess.Popen:
    """Start the command as a user would, with a Ray of its own."""
    overrides = [
        f"search.sampler.seed={seed}",
        f"search.max_concurrent={at_a_time}",
        f"storage.path={storage}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "voxray", "tune", str(space), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def kill_after(process: subprocess.Popen, num_trials: int) -> None:
    """SIGKILL the driver when it has told the end of so many trials."""
    told, lines = 0, []
    while told < num_trials:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
        told += line.startswith("trial ")
    process.kill()
    process.communicate(timeout=60)


def trials_of(study: Path) -> list[optuna.trial.FrozenTrial]:
    """What Optuna reads from the journal."""
    storage = JournalStorage(JournalFileBackend(str(study / "journal.log")))
    return optuna.load_study(study_name=study.name, storage=storage).get_trials()


def assert_as_never_interrupted(done: list[optuna.trial.FrozenTrial], seed: int, folder: Path) -> None:
    """Ask a study that nobody killed for each trial, telling it what was measured: the same suggestions."""
    folder.mkdir()
    search = SearchConfig(sampler=SamplerConfig(startup_trials=4, seed=seed), trials=NUM_TRIALS, space=DRAWN)
    ledger = StudyLedger(folder, StudyRules(search, (ObjectiveConfig(metric="val/loss", mode="min"),)))
    for index, trial in enumerate(done):
        assert ledger.ask(index).values == trial.params
        for step, value in trial.intermediate_values.items():
            ledger.report(index, {"step": step, "val/loss": value})
        ledger.finish(index)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
def test_a_driver_killed_after_seven_trials_ends_with_twenty(space, tmp_path, seed):
    at_a_time = 1 if seed < 3 else 2
    kill_after(start(space, tmp_path, seed, at_a_time), KILLED_AFTER)
    study = tmp_path / "Tiny" / "studies" / "twenty"
    killed = trials_of(study)
    assert sum(trial.state.name == "COMPLETE" for trial in killed) >= KILLED_AFTER
    again = start(space, tmp_path, seed, at_a_time)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output

    trials = trials_of(study)
    done = sorted(
        (trial for trial in trials if trial.state.name == "COMPLETE"), key=lambda t: t.user_attrs["index"]
    )
    assert [trial.user_attrs["index"] for trial in done] == list(range(NUM_TRIALS))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in done}) == NUM_TRIALS
    assert all("training.momentum" in t.params for t in done if t.params["training.optimizer"] == "sgd")
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    # What had ended before the kill was neither told nor trained again.
    ended = {t.number: t.params for t in killed if t.state.name == "COMPLETE"}
    assert {t.number: t.params for t in done if t.number in ended} == ended
    if at_a_time == 1:
        assert_as_never_interrupted(done, seed, tmp_path / "uninterrupted")
