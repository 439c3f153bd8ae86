"""Searches on a real Ray cluster: how trials end is recorded, actors are reused, the real trainer runs."""

import os
import re
import time
from pathlib import Path

import pytest

from voxray.config.errors import InputError
from voxray.core.experiment import load_experiment
from voxray.train.run_folder import RunFolder
from voxray.tune.plan import Plan, load_plan
from voxray.tune.search import fit_search, search
from voxray.tune.study.folder import open_study, write_best

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(plan, train):
    """Search, and return whether it finished, the rows, the rows as they were heard of, and what was said."""
    heard, said = [], []
    with open_study(plan) as ledger:
        finished = search(plan, ledger, train, said.append, heard.append)
        return finished, ledger.rows(), heard, said


def test_the_real_trainer_in_reused_actors(space, tmp_path):
    from voxray.train.worker import train_here

    processes = tmp_path / "processes"
    processes.mkdir()

    def train(*run):
        (processes / str(os.getpid())).touch()
        train_here(*run)

    plan = load_plan(space, [f"storage.path={tmp_path}", "search.trials=4", "search.max_concurrent=2"])
    finished, rows, heard, said = run(plan, train)
    assert finished
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert sorted(heard, key=lambda row: row.index) == rows
    assert "4 trials to do, 2 at a time (inline, 1 CPU each; 4 fit, CPU limits them)" in said[0]
    # One process may train them all, where the second is very slow to start.
    assert len(list(processes.iterdir())) <= 2
    for row in rows:
        folder = RunFolder(plan.trial_folder(row.index))
        assert folder.is_finished()
        losses = [record["val/loss"] for record in folder.records() if record["kind"] == "epoch"]
        assert len(losses) == 3
        assert row.value == min(losses)
        assert folder.config()["training"]["learning_rate"] == row.values["training.learning_rate"]
        assert (folder.path / "provenance.json").exists()
    assert not (plan.folder / "ray").exists()
    with open_study(plan) as ledger:
        best = ledger.best()
        [file] = write_best(plan, ledger)
    saved = RunFolder(plan.trial_folder(best.index)).config()
    assert load_experiment(str(file)).config.model_dump(mode="json") == saved
    # The experiment file reproduces the trial's value.
    values = []
    (tmp_path / "again").mkdir()
    train_here(load_experiment(str(file)).config, tmp_path / "again", lambda m: values.append(m["val/loss"]))
    assert min(values) == best.value


def test_an_actor_that_starts_slowly_is_waited_for(space, tmp_path):
    """The second process takes 3 s, longer than several trials; it is not killed and started anew."""
    starts, here = tmp_path / "starts", os.getpid()
    starts.mkdir()

    def come(folder):
        if os.getpid() != here:  # Tune copies what it is given, here too
            others = len(list(folder.iterdir()))
            (folder / str(os.getpid())).touch()
            time.sleep(3.0 if others else 0.0)
        return Train(folder)

    class Train:
        def __init__(self, folder):
            self.folder = folder

        def __reduce__(self):
            return come, (self.folder,)

        def __call__(self, config, run_dir, report, control):
            time.sleep(0.1)
            report({"epoch": 1, "step": 1, "val/loss": 1.0})

    plan = load_plan(space, [f"storage.path={tmp_path}", "search.trials=10", "search.max_concurrent=2"])
    assert run(plan, Train(starts))[0]
    assert len(list(starts.iterdir())) <= 2


def test_how_a_trial_ends_is_recorded(space, tmp_path):
    """Trial 1 raises, 2 reports no number, 3's process dies twice, 4's once, 5's values are refused."""
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def train(config, run_dir: Path, report, control):
        index = int(run_dir.name)
        for step in (1, 2):
            report(
                {"epoch": step, "step": step, "val/loss": float("nan") if index == 2 else 1.0 / step + index}
            )
            if index == 1:
                raise ValueError("the loss went\naway")
            if index in (3, 4) and len(list(deaths.glob(f"{index}-*"))) < (3 if index == 3 else 1):
                (deaths / f"{index}-{time.monotonic_ns()}").touch()
                os._exit(1)

    class FifthRefused(Plan):
        def trial(self, index, values, seed=None):
            return super().trial(index, {**values, "training.epochs": 0} if index == 5 else values)

    loaded = load_plan(space, [f"storage.path={tmp_path}", "search.trials=6", "search.max_concurrent=2"])
    plan = FifthRefused(loaded.space, loaded.base, loaded.file)
    finished, rows, heard, _ = run(plan, train)
    assert finished
    assert len(heard) == 6
    assert [row.state for row in rows] == ["complete", "fail", "fail", "fail", "complete", "fail"]
    assert [row.value for row in rows] == [0.5, None, None, None, 4.5, None]
    assert rows[1].reason == "ValueError: the loss went\naway"
    assert "ValueError: the loss went" in (plan.trial_folder(1) / "error.txt").read_text()
    assert "never a finite number" in rows[2].reason
    assert "its process died" in rows[3].reason
    assert len(list(deaths.glob("3-*"))) == 2
    assert "training.epochs" in rows[5].reason
    with open_study(plan) as ledger:
        assert ledger.remaining() == []
        assert ledger.best().index == 0


def test_trials_of_more_cpus_than_there_are_wait_for_each_other(space, tmp_path):
    """A trial of three CPUs on four: one at a time."""

    def train(config, run_dir: Path, report, control):
        (tmp_path / f"{run_dir.name}-start").write_text(str(time.time()))
        time.sleep(0.3)
        (tmp_path / f"{run_dir.name}-end").write_text(str(time.time()))
        report({"step": 1, "val/loss": 1.0})

    overrides = ["search.trials=3", "search.max_concurrent=3", "scale.cpus_per_worker=3"]
    finished, _, _, said = run(load_plan(space, [f"storage.path={tmp_path}", *overrides]), train)
    assert finished
    assert "1 at a time (inline, 3 CPU each; 1 fit, CPU limits them)" in said[0]
    times = sorted((float(p.read_text()), p.name.split("-")[1]) for p in tmp_path.glob("000*-*"))
    assert [what for _, what in times] == ["start", "end"] * 3


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("scale.num_workers=8", "command line: a trial with scale.num_workers=8 needs 8 workers of 1 CPU"),
        (
            "scale.num_workers=[5,8]",
            "command line: a trial with scale.num_workers=[5, 8] needs 5 to 8 workers",
        ),
        ("scale.cpus_per_worker=6", "tiny.yaml:5: a trial needs 6 CPU"),
    ],
)
def test_trials_that_never_fit_are_an_input_error_before_any_starts(override, place, space, tmp_path):
    plan = load_plan(space, [f"storage.path={tmp_path}", override])
    with pytest.raises(InputError, match=re.escape(place)) as error:
        run(plan, lambda *_: pytest.fail("a trial began"))
    assert "; Ray has 4 CPU on 1 node, enough for " in str(error.value)
    assert not plan.trial_folder(0).exists()


def test_what_a_searched_scale_may_ask_for(space):
    text = (
        Path(space)
        .read_text()
        .replace("model.hidden_dim: {choice: [8, 16]}", "scale.num_workers: {choice: [1, 2]}")
    )
    (Path(space).parent / "scaled.yaml").write_text(text)
    fitting = fit_search(load_plan(str(Path(space).parent / "scaled.yaml"), ["search.max_concurrent=4"]))
    assert (fitting.executor, fitting.workers, fitting.at_a_time) == ("gang", 2, 2)
