"""A study whose storage is a URL: it goes on on another machine; what needs a folder is refused."""

import contextlib

import fsspec
import pytest

from voxray.config.errors import InputError
from voxray.data.store import Store
from voxray.train import mirror as mirrors
from voxray.tune.ablation.cells import load_ablation
from voxray.tune.ablation.run import open_ablation
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


def test_what_needs_a_folder_is_refused(plan_of):
    ablation = load_ablation(plan_of("one", ABLATION))
    with pytest.raises(InputError, match=f"storage.path={STORAGE}: ablations share"), open_ablation(ablation):
        pass
    pbt = SPACE.replace("  trials: 4", "  trials: 4\n  scheduler: {name: pbt}")
    with pytest.raises(InputError, match=f"which storage.path={STORAGE} cannot; name a folder"):
        plan_of("one", pbt)
