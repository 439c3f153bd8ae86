"""The ledger: an in-memory objective on a real journal file, stopped at any moment and opened again."""

import json
import math
import os
import threading
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from voxray.tune.config import ObjectiveConfig, SamplerConfig, SearchConfig
from voxray.tune.space.config import Distribution
from voxray.tune.study.journal import mend_journal
from voxray.tune.study.ledger import StudyLedger, StudyRules

SPACE = {
    "training.learning_rate": Distribution(loguniform=(1e-4, 1e-1)),
    "model.dropout": Distribution(uniform=(0.0, 0.5)),
    "model.hidden_dim": Distribution(choice=[64, 128]),
    "training.epochs": Distribution(fixed=3),
}
NUM_TRIALS = 10


def open_ledger(
    folder: Path, num_trials: int = NUM_TRIALS, mode: str = "max", sampler: str = "tpe"
) -> StudyLedger:
    folder.mkdir(exist_ok=True)
    objective = ObjectiveConfig(metric="val/auroc", mode=mode)
    search = SearchConfig(
        sampler=SamplerConfig(name=sampler, startup_trials=3), trials=num_trials, space=SPACE
    )
    return StudyLedger(folder, StudyRules(search, (objective,)))


def value(values: dict, step: int) -> float:
    """A smooth objective that is best at step 2."""
    return -abs(math.log10(values["training.learning_rate"]) + 2.5) - values["model.dropout"] - abs(step - 2)


def tell(ledger: StudyLedger, index: int, step: int, score: float) -> None:
    ledger.report(index, {"step": step, "epochs": step / 2, "val/auroc": score})


def run(ledger: StudyLedger, most: int = NUM_TRIALS) -> None:
    for index in ledger.remaining()[:most]:
        values = ledger.ask(index).values
        for step in (1, 2, 3):
            tell(ledger, index, step, value(values, step))
        ledger.finish(index)


def drawn(ledger: StudyLedger) -> list[dict]:
    return [row.values for row in ledger.rows()]


def raw_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """What Optuna itself reads from the file."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(study_name=folder.name, storage=storage).get_trials()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> StudyLedger:
    ledger = open_ledger(tmp_path_factory.mktemp("whole"))
    run(ledger)
    return ledger


def test_the_value_of_a_trial_is_its_best_over_the_steps(uninterrupted):
    assert [row.index for row in uninterrupted.rows()] == list(range(NUM_TRIALS))
    for row in uninterrupted.rows():
        assert row.state == "complete"
        assert row.value == value(row.values, 2)
        assert row.step == 2
        assert row.values["training.epochs"] == 3
    best = uninterrupted.best()
    assert best.value == max(row.value for row in uninterrupted.rows())


def test_tpe_learns_after_its_startup_trials_and_differs_from_random(uninterrupted, tmp_path):
    random = open_ledger(tmp_path / "random", sampler="random")
    run(random)
    assert drawn(random)[:3] == drawn(uninterrupted)[:3]  # both draw their first from hash(seed, index)
    assert drawn(random)[4:] != drawn(uninterrupted)[4:]
    assert len({row.values["model.dropout"] for row in random.rows()}) == NUM_TRIALS


@pytest.mark.parametrize("cut", [1, 4, 9])
@pytest.mark.parametrize("how", ["between", "running", "running with a value", "ctrl-c"])
def test_a_continued_study_equals_an_uninterrupted_one(uninterrupted, tmp_path, cut, how):
    ledger = open_ledger(tmp_path / "study")
    run(ledger, cut)
    if how != "between":
        index = ledger.remaining()[0]
        values = ledger.ask(index).values
        if how == "running with a value":
            tell(ledger, index, 1, value(values, 1))
        if how == "ctrl-c":
            assert ledger.cut_short() == [index]
    again = open_ledger(tmp_path / "study")
    assert again.remaining() == list(range(cut, NUM_TRIALS))
    run(again)
    assert drawn(again) == drawn(uninterrupted)
    assert [row.value for row in again.rows()] == [row.value for row in uninterrupted.rows()]
    states = [trial.state for trial in raw_trials(tmp_path / "study")]
    assert states.count(TrialState.COMPLETE) == NUM_TRIALS
    assert states.count(TrialState.FAIL) == (how != "between")
    assert TrialState.RUNNING not in states


def test_orphans_run_again_with_their_own_values_at_any_concurrency(tmp_path):
    """Two ran when the driver was killed; after trial 4 the sampler would suggest something else."""
    ledger = open_ledger(tmp_path / "study")
    run(ledger, 4)
    before = {index: ledger.ask(index).values for index in ledger.remaining()[:3]}
    tell(ledger, 4, 1, -5.0)
    ledger.finish(4)
    tell(ledger, 5, 1, -7.0)
    again = open_ledger(tmp_path / "study")
    assert again.remaining() == [5, 6, 7, 8, 9]
    assert {index: again.ask(index).values for index in (6, 5)} == {i: before[i] for i in (6, 5)}
    # The same step again, as a run that starts over passes it: the first value stays.
    tell(again, 5, 1, -1.0)
    tell(again, 5, 2, -6.0)
    assert again.finish(5).value == -6.0
    assert raw_trials(tmp_path / "study")[-1].intermediate_values == {1: -7.0, 2: -6.0}


def test_a_crash_is_done_and_a_stopped_trial_is_pruned_with_its_last_value(tmp_path):
    ledger = open_ledger(tmp_path / "study", num_trials=5)
    for index in range(5):
        ledger.ask(index)
    tell(ledger, 0, 1, 0.5)
    assert ledger.crash(0, "RunError: loss is nan").state == "fail"
    for step, number in ((1, 0.9), (2, 0.4)):
        tell(ledger, 1, step, number)
    assert (ledger.stop(1).state, ledger.rows()[1].value) == ("pruned", 0.4)
    tell(ledger, 2, 1, math.nan)
    row = ledger.finish(2)
    assert (row.state, row.value, row.reason) == ("fail", None, "val/auroc was never a finite number")
    tell(ledger, 3, 1, math.nan)
    tell(ledger, 3, 2, 0.3)
    assert ledger.finish(3).value == 0.3
    assert open_ledger(tmp_path / "study", num_trials=5).remaining() == [4]
    states = [trial.state.name for trial in raw_trials(tmp_path / "study")]
    assert states == ["FAIL", "PRUNED", "FAIL", "COMPLETE", "FAIL"]
    assert open_ledger(tmp_path / "study", num_trials=5).best().index == 3


def test_more_trials_are_added_to_a_finished_study(uninterrupted, tmp_path):
    run(open_ledger(tmp_path / "study", num_trials=6))
    assert open_ledger(tmp_path / "study", num_trials=6).remaining() == []
    run(open_ledger(tmp_path / "study"))
    assert drawn(open_ledger(tmp_path / "study")) == drawn(uninterrupted)


def test_lower_is_better_when_the_mode_says_so(tmp_path):
    ledger = open_ledger(tmp_path / "study", num_trials=3, mode="min")
    run(ledger)
    assert ledger.best().value == min(row.value for row in ledger.rows())
    assert all(row.value == min(value(row.values, step) for step in (1, 2, 3)) for row in ledger.rows())


def test_what_a_killed_driver_leaves_in_the_journal_is_mended(uninterrupted, tmp_path):
    folder = tmp_path / "study"
    run(open_ledger(folder), 4)
    journal = folder / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"wor')
    (folder / "journal.log.lock").symlink_to(journal)
    mend_journal(journal)
    assert journal.read_bytes() == whole
    journal.write_bytes(whole + b'{"op_code":4,"wor')
    (folder / "journal.log.lock").symlink_to(journal)
    run(open_ledger(folder))
    assert drawn(open_ledger(folder)) == drawn(uninterrupted)


def test_ends_of_trials_are_put_on_the_disk_and_all_lines_are_optunas(tmp_path, monkeypatch):
    """Optuna's own backend, given the same operations, writes the same file."""
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    run(open_ledger(tmp_path / "study", num_trials=3))
    for thread in threading.enumerate():
        if thread.name == "fsync":
            thread.join()
    ours = [json.loads(line) for line in (tmp_path / "study" / "journal.log").read_text().splitlines()]
    assert len(synced) == 1 + 3  # the study, and each end
    other = JournalFileBackend(str(tmp_path / "optuna.log"))
    for operation in ours:
        other.append_logs([operation])
    assert (tmp_path / "optuna.log").read_bytes() == (tmp_path / "study" / "journal.log").read_bytes()
