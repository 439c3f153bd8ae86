"""A study whose storage is a URL: it goes on on another machine, an ablation too."""

import contextlib
import shutil

import fsspec
import numpy as np
import pytest

from voxray.config.errors import InputError
from voxray.core.schema import TEXT, Column, Schema
from voxray.data.store import Store
from voxray.testing.datasets import write_dataset
from voxray.train import mirror as mirrors
from voxray.train.mirror import Mirror
from voxray.train.run_folder import RunFolder
from voxray.tune.ablation.cells import load_ablation
from voxray.tune.ablation.evaluation import read_cell
from voxray.tune.ablation.ledger import fetch_cells
from voxray.tune.ablation.run import open_ablation, write_results
from voxray.tune.plan import load_plan
from voxray.tune.study.folder import mirror_of, open_study

STORAGE = "memory://bucket/runs"
EXPERIMENT = "task: voxray.testing.tiny:Tiny\ndata: {path: somewhere}\ntraining: {epochs: 3}\n"
SPACE = """
experiment: base.yaml
objective: {metric: val/loss, mode: min}
search:
  trials: 4
  space:
    training.learning_rate: {loguniform: [1e-5, 1e-2]}
"""
ABLATION = """
experiment: base.yaml
objective: {metric: val/loss, mode: min}
ablate: {seeds: [0, 1], arms: {wide: {model.hidden_dim: 32}}}
"""


@pytest.fixture
def plan_of(tmp_path, monkeypatch):
    """Load a space on a machine whose cache is its own; the store is empty and answers at once."""
    fsspec.filesystem("memory").store.clear()
    monkeypatch.setattr(mirrors, "FIRST_WAIT_S", 0.0)
    (tmp_path / "base.yaml").write_text(EXPERIMENT)

    def load(machine: str, space: str = SPACE):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        (tmp_path / "four.yaml").write_text(space)
        return load_plan(str(tmp_path / "four.yaml"), [f"storage.path={STORAGE}"])

    yield load
    fsspec.filesystem("memory").store.clear()


def finish(ledger, index: int) -> dict:
    values = ledger.ask(index).values
    ledger.report(index, {"step": 1, "val/loss": index / 10})
    ledger.finish(index)
    return values


def test_a_study_that_was_killed_goes_on_on_another_machine(plan_of, tmp_path):
    plan = plan_of("whole")
    with open_study(plan) as ledger:
        whole = {index: finish(ledger, index) for index in ledger.remaining()}
    fsspec.filesystem("memory").store.clear()

    plan = plan_of("one")
    with open_study(plan) as ledger:
        drawn = {index: finish(ledger, index) for index in (0, 1)}
    # Nothing is sent at such an end.
    with contextlib.suppress(KeyboardInterrupt), open_study(plan) as ledger:
        drawn[2] = finish(ledger, 2)
        mirror_of(plan).push_or_tell(pytest.fail)
        ledger.ask(3)
        raise KeyboardInterrupt
    plan = plan_of("two")
    with open_study(plan) as ledger:
        assert ledger.remaining() == [3]
        assert [row.index for row in ledger.rows()] == [0, 1, 2]
        drawn[3] = finish(ledger, 3)
    assert drawn == whole
    with open_study(plan_of("three")) as ledger:
        assert ledger.remaining() == []
    assert "studies/four/study.json" in Store.of(f"{STORAGE}/Tiny").files()


def test_a_study_of_another_space_is_refused_on_another_machine_too(plan_of):
    with open_study(plan_of("one")):
        pass
    other = SPACE.replace("1e-2", "1e-1")
    with pytest.raises(InputError, match="began with another space"), open_study(plan_of("two", other)):
        pass


def train(job, score: float) -> None:
    """What a trainer leaves in a run's folder, here and in the store."""
    (run,) = job.runs
    folder = RunFolder(run.path)
    folder.log({"kind": "epoch", "step": 3, "epochs": 3.0, "val/loss": score})
    folder.log({"kind": "end", "status": "finished", "step": 3, "time_s": 1.0})
    mirror = Mirror.of(STORAGE, run.path)
    assert mirror
    mirror.push()


def test_an_ablation_goes_on_on_another_machine(plan_of):
    with open_ablation(load_ablation(plan_of("one", ABLATION))) as ledger:
        assert ledger.remaining() == [0, 1, 2, 3]
        for index, score in ((0, 0.5), (1, 0.25)):
            job = ledger.job(ledger.ask(index), "inline")
            train(job, score)
            assert ledger.finish(index, job).scores == (score,)
            assert ledger.remaining()[0] == index + 1
        ledger.job(ledger.ask(2), "inline")
        ledger.crash(2, "out of memory")
    ablation = load_ablation(plan_of("two", ABLATION))
    fetch_cells(ablation)
    states = [read_cell(ablation.cell_folder(cell), ablation.objectives, "best") for cell in ablation.cells]
    assert [state.state for state in states] == ["done", "done", "failed", "new"]
    assert states[2].reason == "out of memory"
    with open_ablation(ablation) as ledger:
        assert ledger.remaining() == [2, 3]
        assert [row.scores for row in ledger.rows()] == [(0.5,), (0.25,)]
        for index in (2, 3):
            job = ledger.job(ledger.ask(index), "inline")
            train(job, 0.125)
            ledger.finish(index, job)
            ledger.remaining()
        write_results(ledger)
    with open_ablation(load_ablation(plan_of("three", ABLATION))) as ledger:
        assert ledger.left() == []
    sent = Store.of(f"{STORAGE}/Tiny").files()
    assert "studies/four/ablation.json" in sent
    assert sum(file.startswith("cells/") and file.endswith("log.jsonl") for file in sent) == 4


def test_cells_that_were_trained_on_other_data_elsewhere_are_refused(plan_of, tmp_path):
    schema = Schema({"sample_id": Column(TEXT), "x": Column("float32", (2,))}, "sample_id")
    space = ABLATION.replace("ablate:", "# the same\nablate:")
    for machine, value in (("one", 0.0), ("two", 1.0)):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        columns = {"sample_id": np.array(["a"], dtype=object), "x": np.full((1, 2), value, np.float32)}
        write_dataset(tmp_path / "data", schema, {"train": columns}, 1)
        (tmp_path / "base.yaml").write_text(EXPERIMENT.replace("somewhere", str(tmp_path / "data")))
        ablation = load_ablation(plan_of(machine, space))
        if machine == "one":
            with open_ablation(ablation) as ledger:
                ledger.remaining()
                job = ledger.job(ledger.ask(0), "inline")
                train(job, 0.5)
                ledger.finish(0, job)
        else:
            with pytest.raises(InputError, match="holds other data"), open_ablation(ablation):
                pass


def test_a_population_at_a_url_is_refused(plan_of):
    pbt = SPACE.replace("  trials: 4", "  trials: 4\n  scheduler: {name: pbt}")
    with pytest.raises(InputError, match=f"which storage.path={STORAGE} cannot; name a folder"):
        plan_of("one", pbt)
