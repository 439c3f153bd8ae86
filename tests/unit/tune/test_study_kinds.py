"""What a ledger makes of constraints, points, seeds, several objectives, budgets, samplers, older studies."""

import json
import math
import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import optuna
import pytest

from voxray.config.errors import InputError, RunError
from voxray.testing.tiny import TinyConfig
from voxray.tune.config import ObjectiveConfig, SamplerConfig, SearchConfig
from voxray.tune.job import RUN, Job, Run
from voxray.tune.space.config import Distribution
from voxray.tune.space.constraints import read_constraints
from voxray.tune.space.draw import Space
from voxray.tune.study.earlier import learn_from, read_earlier
from voxray.tune.study.journal import read_journal
from voxray.tune.study.ledger import StudyLedger, StudyRules
from voxray.tune.study.pareto import non_dominated

SPACE = {
    "x": Distribution(uniform=(0.0, 1.0)),
    "kind": Distribution(choice=["a", "b"]),
    "y": Distribution(loguniform=(1e-3, 1.0), when={"kind": "b"}),
}
LOSS = ObjectiveConfig(metric="val/loss", mode="min")
SIZE = ObjectiveConfig(metric="model/params", mode="min")
GAIN = ObjectiveConfig(metric="val/gain", mode="max")


def ledger_of(folder: Path, *objectives: ObjectiveConfig, space=SPACE, constraints=(), points=(), **search):
    folder.mkdir(exist_ok=True)
    config = SearchConfig(**({"trials": 6} | search), space=space)
    found = Space(space)
    rules = StudyRules(
        config,
        objectives or (LOSS,),
        read_constraints(constraints, str),
        {"base": 3, "y": 0.1},
        tuple(found.params(point) for point in points),
    )
    return StudyLedger(folder, rules)


def tell(ledger: StudyLedger, index: int, **metrics: float):
    ledger.report(index, {"step": 1, "epochs": 1.0, **{k.replace("__", "/"): v for k, v in metrics.items()}})
    return ledger.finish(index)


def test_points_come_first_and_what_they_leave_out_is_drawn(tmp_path):
    ledger = ledger_of(tmp_path, points=[{"x": 0.25, "kind": "b"}, {"kind": "a"}])
    first, second, third = (ledger.ask(index).values for index in range(3))
    assert (first["x"], first["kind"]) == (0.25, "b")
    assert 1e-3 <= first["y"] <= 1
    assert second["kind"] == "a"
    assert "y" not in second
    plain = ledger_of(tmp_path / "plain")
    assert third == plain.ask(2).values  # a trial's draw hangs on its index alone


def test_a_constraint_of_keys_is_looked_at_before_a_trial_starts(tmp_path):
    ledger = ledger_of(tmp_path, constraints=["x <= 0.1 * base", "kind == 'a' or key('y') < 0.5"], trials=20)
    drawn = [ledger.ask(index).values for index in range(20)]
    assert all(values["x"] <= 0.3 for values in drawn)
    rejected = [t for t in ledger.study.trials if "rejected" in t.user_attrs]
    assert len(rejected) > 10  # two in three draws of x
    assert all(t.state.name == "FAIL" for t in rejected)
    assert all(t.params["x"] > 0.3 or t.params.get("y", 0) >= 0.5 for t in rejected)
    assert ledger.cut_short() == list(range(20))
    assert ledger.remaining() == list(range(20))
    impossible = ledger_of(tmp_path / "none", constraints=["x > 2"])
    with pytest.raises(RunError, match="refused 200 draws, the last by 'x > 2'"):
        impossible.ask(0)


def test_a_constraint_of_metrics_is_told_to_optuna_and_decides_what_is_best(tmp_path):
    ledger = ledger_of(tmp_path, constraints=["metric('model/params') <= 100 and metric('val/loss') < 9"])
    for index, (loss, size) in enumerate([(0.1, 200.0), (0.5, 90.0), (0.7, 100.0)]):
        ledger.ask(index)
        tell(ledger, index, val__loss=loss, model__params=size)
    assert [row.is_feasible for row in ledger.rows()] == [False, True, True]
    assert ledger.best().index == 1
    # As Optuna itself sees it, read back from the file.
    study = read_journal(tmp_path)
    assert [list(trial.constraints.values()) for trial in study.trials] == [[100.0], [-8.5], [0.0]]
    assert [trial.number for trial in study.best_trials] == [1]
    ledger.ask(3)
    assert tell(ledger, 3, val__loss=0.2).reason == "constraints: model/params was never reported"


def test_the_mean_over_seeds_of_each_seeds_best_is_told(tmp_path):
    ledger = ledger_of(tmp_path / "s", seeds=(3, 4))
    ledger.ask(0)
    runs = []
    for number, losses in enumerate([[0.5, 0.2, 0.3], [0.8, 0.6, 0.7]]):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        runs.append(Run(folder, TinyConfig()))
        records = [{"kind": "epoch", "step": s, "epochs": s, "val/loss": v} for s, v in enumerate(losses)]
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    ledger.report(0, {"step": 0, "val/loss": 0.5})
    ledger.report(0, {"step": 0, "val/loss": 0.8, RUN: 1})
    row = ledger.finish(0, Job(0, tuple(runs), "inline"))
    assert row.value == pytest.approx((0.2 + 0.6) / 2)
    (trial,) = read_journal(tmp_path / "s").trials
    assert trial.user_attrs["seeds"] == [[0.2], [0.6]]
    assert trial.intermediate_values == {0: 0.5, 1: 0.2, 2: 0.3}  # of the first seed


def test_a_trial_of_several_stages_has_the_best_of_its_last(tmp_path):
    ledger = ledger_of(tmp_path / "s")
    ledger.ask(0)
    stages = [("phase1", 0.1), ("phase1", 0.2), ("phase2", 0.5), ("phase2", 0.4), ("phase2", 0.6)]
    records = [
        {"kind": "epoch", "stage": stage, "step": step, "epochs": step, "val/loss": loss}
        for step, (stage, loss) in enumerate(stages)
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    ledger.report(0, {"step": 0, "val/loss": 0.1})
    row = ledger.finish(0, Job(0, (Run(tmp_path / "run", TinyConfig()),), "inline"))
    assert (row.value, row.step) == (0.4, 3)


def test_several_objectives_keep_their_curves_and_the_front(tmp_path):
    ledger = ledger_of(tmp_path, LOSS, GAIN)
    points = [(0.5, 0.5), (0.2, 0.4), (0.9, 0.9), (0.6, 0.4), (0.2, 0.3)]
    for index, (loss, gain) in enumerate(points):
        ledger.ask(index)
        ledger.report(index, {"step": 5, "epochs": 0.5, "val/loss": loss + 1, "val/gain": 0.0})
        ledger.report(index, {"step": 9, "epochs": 1.0, "val/loss": loss, "val/gain": gain})
        row = ledger.finish(index)
        assert (row.scores, row.step) == ((loss, gain), 9)
    assert [row.index for row in ledger.front()] == [0, 1, 2]
    study = read_journal(tmp_path)
    assert [trial.number for trial in study.best_trials] == [0, 1, 2]  # Optuna's own front
    assert ledger.curves()[0] == [(5, 0.5, (1.5, 0.0)), (9, 1.0, (0.5, 0.5))]
    ledger.ask(5)
    ledger.report(5, {"step": 5, "epochs": 0.5, "val/loss": 3.0, "val/gain": 0.1})
    row = ledger.stop(5)
    assert (row.state, row.scores, row.step) == ("pruned", (3.0, 0.1), 5)
    assert ledger_of(tmp_path, LOSS, GAIN).remaining() == []


def test_the_front_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 6, (80, 3)).tolist()
    for place, own in enumerate(costs):
        beaten = any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in costs)
        assert (place in non_dominated(costs)) != beaten


def test_a_search_ends_when_its_seconds_are_spent(tmp_path):
    ledger = ledger_of(tmp_path, trials=None, seconds=3600.0)
    assert ledger.num_trials is None
    assert ledger.remaining() == [0]
    for index in range(3):
        assert ledger.remaining() == [index]
        ledger.ask(index)
        tell(ledger, index, val__loss=1.0)
    assert 0 < ledger.seconds() < 60
    # Two trials side by side for an hour are one hour of searching, and two of their GPUs.
    begin = datetime(2026, 1, 1)
    for index in (3, 4):
        told = optuna.trial.create_trial(value=1.0, user_attrs={"index": index, "gpus": 0.5})
        told.datetime_start, told.datetime_complete = begin, begin + timedelta(hours=1)
        ledger.study.add_trial(told)
    assert ledger.seconds() == pytest.approx(3600, abs=60)
    assert ledger.gpu_hours() == pytest.approx(1.0, abs=0.02)
    assert ledger.is_spent()
    assert ledger.remaining() == []


def test_a_trial_that_was_cut_short_long_ago_costs_no_budget(tmp_path):
    ledger = ledger_of(tmp_path, trials=None, seconds=60.0)
    ledger.ask(0)
    time.sleep(0.05)
    again = ledger_of(tmp_path, trials=None, seconds=60.0)
    assert again.seconds() == 0
    assert again.remaining() == [0, 1]


def test_brute_force_tries_each_combination_once(tmp_path):
    space = {k: v for k, v in SPACE.items() if k == "kind"} | {
        "n": Distribution(int=(1, 3), when={"kind": "b"})
    }
    ledger = ledger_of(
        tmp_path, space=space, trials=None, seconds=99, sampler=SamplerConfig(name="brute_force")
    )
    assert ledger.num_trials == 4
    tried = []
    while ledger.remaining():
        index = ledger.remaining()[0]
        tried.append(ledger.ask(index).values)
        tell(ledger, index, val__loss=1.0)
    assert tried == [{"kind": "a"}, *({"kind": "b", "n": n} for n in (1, 2, 3))]


def objective(values: dict) -> float:
    """A smooth loss, best at x = 0.3, kind b, y = 0.1."""
    loss = (values["x"] - 0.3) ** 2
    return loss + (0.5 if values["kind"] == "a" else 0.05 * math.log10(values["y"] / 0.1) ** 2)


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random"])
def test_each_sampler_is_deterministic_and_continues(tmp_path, name):
    sampler = SamplerConfig(name=name, startup_trials=4, population=4)

    def drawn(folder: Path, cuts: tuple[int, ...]) -> list[dict]:
        for until in cuts:  # a new ledger is what a new process opens
            ledger = ledger_of(folder, sampler=sampler, trials=9)
            for index in ledger.remaining()[: until - len(ledger.rows())]:
                tell(ledger, index, val__loss=objective(ledger.ask(index).values))
        return [row.values for row in ledger.rows()]

    whole = drawn(tmp_path / "whole", (9,))
    assert drawn(tmp_path / "cut", (3, 7, 9)) == whole
    assert len({json.dumps(values) for values in whole}) == 9


def test_tpe_finds_more_than_random_does(tmp_path):
    """Twelve seeds of 40 trials: the sign test asks for 10 wins of 12 at 2 %."""
    wins = 0
    for seed in range(12):
        best = {}
        for name in ("tpe", "random"):
            sampler = SamplerConfig(name=name, seed=seed, startup_trials=5)
            ledger = ledger_of(tmp_path / f"{name}{seed}", sampler=sampler, trials=40)
            for index in range(40):
                tell(ledger, index, val__loss=objective(ledger.ask(index).values))
            best[name] = ledger.best().value
        wins += best["tpe"] < best["random"]
    assert wins >= 10


def test_an_earlier_study_is_learnt_from_once(tmp_path):
    earlier = tmp_path / "earlier"
    wide = SPACE | {"x": Distribution(uniform=(0.0, 2.0))}
    first = ledger_of(earlier, space=wide, trials=12)
    for index in range(12):
        tell(first, index, val__loss=first.ask(index).values["x"])
    declared = {p: d.model_dump(mode="json") for p, d in wide.items()}
    saved = {"space": {"objective": LOSS.model_dump(), "search": {"space": declared}}, "config": {"z": 0.5}}
    (earlier / "study.json").write_text(json.dumps(saved))

    read = read_earlier(earlier, (LOSS,))
    space = SPACE | {"z": Distribution(uniform=(0.0, 1.0))}  # the earlier one's experiment said 0.5
    ledger = ledger_of(tmp_path / "new", space=space)
    outside = sum(row.values["x"] > 1 for row in first.rows())
    assert 0 < outside < 12
    assert learn_from(ledger, read) == (12 - outside, outside)
    assert learn_from(ledger, read) == (0, 0)
    told = read_journal(tmp_path / "new").trials
    assert {trial.params["z"] for trial in told} == {0.5}
    assert sorted(t.value for t in told) == sorted(r.value for r in first.rows() if r.values["x"] <= 1)
    assert ledger.rows() == []
    assert ledger.best() is None
    assert ledger.remaining() == list(range(6))
    assert ledger.ask(0).values["x"] != ledger_of(tmp_path / "alone").ask(0).values["x"] or len(told) < 10

    with pytest.raises(InputError, match="looked at val/loss"):
        read_earlier(earlier, (GAIN,))


def test_exploits_are_kept_and_change_the_values(tmp_path):
    search = {"scheduler": {"name": "pbt"}}
    ledger = ledger_of(tmp_path, **search)
    before = ledger.ask(0).values
    ledger.report(0, {"step": 4, "epochs": 2.0, "val/loss": 1.0})
    ledger.note_exploit(0, {"epochs": 2.0, "step": 4, "from": 1, "values": {**before, "x": 0.125}})
    again = ledger_of(tmp_path, **search)
    assert again.ask(0).values == {**before, "x": 0.125}
    assert again.curves()[0] == [(4, 2.0, (1.0,))]
    assert tell(again, 0, val__loss=0.5).values["x"] == 0.125


def test_the_journal_is_readable_while_a_driver_holds_it(tmp_path):
    ledger = ledger_of(tmp_path)
    ledger.ask(0)
    assert [trial.state.name for trial in read_journal(tmp_path).trials] == ["RUNNING"]
    assert os.listdir(tmp_path) == ["journal.log"]
