"""ASHA on a real Ray cluster: who is stopped where, what the study says of it, and that no rung is lost."""

from pathlib import Path

import pytest

from voxray.train.run_folder import RunFolder
from voxray.train.worker import train_here
from voxray.tune.plan import load_plan
from voxray.tune.search import search
from voxray.tune.study.folder import open_study

pytestmark = pytest.mark.usefixtures("ray_cluster")
TRIALS, RUNGS = 7, (1, 3)
ASHA = ["search.scheduler.name=asha", "search.scheduler.reduction_factor=3", "training.epochs=4"]


def run(space: str, storage: Path, *overrides: str):
    plan = load_plan(space, [f"storage.path={storage}", f"search.trials={TRIALS}", *ASHA, *overrides])
    with open_study(plan) as ledger:
        assert search(plan, ledger, train_here, lambda text: None, lambda row: None)
        return plan, ledger.rows()


def test_trials_are_stopped_by_rank_and_continued_searches_keep_their_rungs(space, tmp_path):
    plan, rows = run(space, tmp_path)
    reached = {rung: [] for rung in RUNGS}
    for row in rows:  # one at a time, in order
        records = RunFolder(plan.trial_folder(row.index)).records()
        losses = [record["val/loss"] for record in records if record["kind"] == "epoch"]
        stopped_at = None
        for epoch, loss in enumerate(losses, 1):
            if epoch in RUNGS:
                reached[epoch].append(loss)
                num_better = sum(other < loss for other in reached[epoch])
                if num_better >= len(reached[epoch]) / 3:
                    stopped_at = epoch
                    break
        assert len(losses) == (stopped_at or 4)
        assert row.state == ("pruned" if stopped_at else "complete")
        assert row.value == (losses[-1] if stopped_at else min(losses))
        assert row.step == 4 * (stopped_at or 1 + losses.index(min(losses)))
    assert {row.state for row in rows} == {"pruned", "complete"}
    assert len(reached[1]) == TRIALS

    # The first four trials, then the same command with all seven: the same rungs, so the same ends.
    run(space, tmp_path / "again", "search.trials=4")
    _, continued = run(space, tmp_path / "again")
    assert [(row.state, row.scores) for row in continued] == [(row.state, row.scores) for row in rows]
