"""A study over time: curves with rungs, seeds, the timeline, the budget, a population's lineage."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from report_folders import Page, page_of
from study_journals import AUROC, PARAMS, begin, timed

from voxray.config.errors import InputError
from voxray.report.study.budget import gpu_hours, seconds_searched, seconds_trained
from voxray.report.study.lineage import origins
from voxray.report.study.read import read_study
from voxray.report.study.timeline import lanes, spans_s

ASHA = {"name": "asha", "unit": "epochs", "grace_epochs": 2, "reduction_factor": 3.0}
DONE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


def curve(scores: list[float], steps_per_epoch: int = 24) -> dict[str, Any]:
    """Return a trial's attributes and intermediate values, an evaluation per epoch."""
    at = {f"at/{epoch * steps_per_epoch}": [float(epoch), score] for epoch, score in enumerate(scores, 1)}
    steps = {epoch * steps_per_epoch: score for epoch, score in enumerate(scores, 1)}
    return {"intermediate": steps, **at}


@pytest.fixture
def asha(tmp_path: Path) -> Path:
    study = begin(tmp_path / "asha", AUROC, space={}, trials=4, scheduler=ASHA)
    study.add_trial(timed(0, 0, 70, [0.9], **curve([0.5, 0.6, 0.7, 0.8, 0.9, 0.85, 0.8])))
    study.add_trial(timed(1, 0, 20, [0.4], PRUNED, **curve([0.3, 0.4])))
    study.add_trial(timed(2, 20, 60, [0.6], PRUNED, **curve([0.4, 0.5, 0.55, 0.6, 0.62, 0.6])))
    study.add_trial(timed(3, 80, None, state=RUNNING, **curve([0.2])))
    return tmp_path / "asha"


def test_curves_run_over_epochs_stopped_ones_end_with_a_cross_at_a_rung(asha: Path) -> None:
    plot = page_of(asha).plots("Curves of all trials")
    *lines, crosses = plot["data"]
    drawn = {line["hovertemplate"].partition(":")[0]: (line["x"], line["y"]) for line in lines}
    assert drawn["trial 2"] == ([1, 2, 3, 4, 5, 6], [0.4, 0.5, 0.55, 0.6, 0.62, 0.6])
    assert drawn["trial 3"] == ([1], [0.2])
    assert set(drawn) == {f"trial {index}" for index in range(4)}
    assert lines[-1]["name"] == "best: trial 0"
    assert (crosses["x"], crosses["y"]) == ([2, 6], [0.4, 0.6])
    assert [shape["x0"] for shape in plot["layout"]["shapes"]] == [2, 6]
    assert plot["layout"]["xaxis"]["title"]["text"] == "epochs"


def test_a_stopped_trial_stands_in_the_history_with_its_last_value(asha: Path) -> None:
    page = page_of(asha)
    marks = {trace["name"]: (trace["x"], trace["y"]) for trace in page.plots("History")["data"]}
    assert marks["pruned, last value"] == ([1, 2], [0.4, 0.6])
    assert marks["best so far"] == ([0], [0.9])
    assert "1 trials without a value are left out" in page.text


def test_without_a_scheduler_curves_run_over_updates(tmp_path: Path) -> None:
    study = begin(tmp_path / "plain", AUROC, space={}, trials=1)
    study.add_trial(timed(0, 0, 5, [0.5], intermediate={24: 0.4, 48: 0.5}))
    plot = page_of(tmp_path / "plain").plots("Curves of all trials")
    assert (plot["data"][0]["x"], plot["data"][0]["y"]) == ([24, 48], [0.4, 0.5])
    assert plot["layout"]["xaxis"]["title"]["text"] == "updates"
    assert plot["layout"]["shapes"] == []


def test_seeds_are_shown_as_mean_and_standard_deviation(tmp_path: Path) -> None:
    study = begin(tmp_path / "seeds", AUROC, PARAMS, space={}, trials=2, seeds=[0, 1, 2])
    seeds = np.array([[0.71, 3e6], [0.74, 3e6], [0.77, 3e6]])
    study.add_trial(timed(0, 0, 5, list(seeds.mean(0)), seeds=seeds.tolist()))
    study.add_trial(timed(1, 0, 5, state=FAIL, reason="diverged"))
    page = page_of(tmp_path / "seeds")
    first, second = read_study(tmp_path / "seeds").trials
    assert first.spread(0) == pytest.approx(np.std(seeds[:, 0], ddof=1))
    assert first.spread(1) == 0
    assert second.spread(0) is None
    bars = next(
        trace["error_y"] for trace in page.plots("History of val/auroc")["data"] if "error_y" in trace
    )
    assert bars["array"] == [pytest.approx(0.03)]
    header = next(rows[0] for rows in page.tables if rows[0][:2] == ["trial", "state"])
    assert header[2:6] == [
        "val/auroc",
        "model/params",
        *(f"± sd of {m}, 3 seeds" for m in ("val/auroc", "model/params")),
    ]
    assert page.table("trial", "state")[0][4] == "0.030"


def test_lanes_of_a_hand_worked_study() -> None:
    trials = [
        *(timed(0, 0, 10, [0.1]), timed(1, 0, 4, [0.1]), timed(2, 4, 3, [0.1])),
        *(timed(3, 12, 2, [0.1]), timed(4, 1014, 20, [0.1]), timed(5, 1020, None, state=RUNNING)),
    ]
    spans = spans_s([_read(trial) for trial in trials])
    assert spans[-1][1:] == (1020, 1034)  # what runs is drawn up to the last time that is known
    bars, pauses = lanes(spans)
    assert [(bar.trial.index, bar.lane, bar.start_s, bar.end_s) for bar in bars] == [
        *((1, 0, 0, 4), (0, 1, 0, 10), (2, 0, 4, 7), (3, 0, 12, 14)),
        *((4, 0, 14, 34), (5, 1, 20, 34)),
    ]
    assert pauses == [(14, 1000)]


def _read(trial: optuna.trial.FrozenTrial) -> Any:
    from voxray.report.study.read import _trial

    return _trial(trial, {})


def test_no_two_bars_of_a_lane_overlap_and_all_are_drawn(tmp_path: Path) -> None:
    study, chance = begin(tmp_path / "many", AUROC, space={}, trials=80), np.random.default_rng(0)
    starts = np.cumsum(chance.exponential(3, 80))
    for index, start in enumerate(starts):
        study.add_trial(timed(index % 15, float(start), float(chance.exponential(8)), [0.1]))
    bars, _ = lanes(spans_s(read_study(tmp_path / "many").trials))
    assert len(bars) == 80
    for lane in {bar.lane for bar in bars}:
        own = sorted((bar.start_s, bar.end_s) for bar in bars if bar.lane == lane)
        assert all(before[1] <= after[0] for before, after in pairwise(own))
    drawn = page_of(tmp_path / "many").plots("Timeline")["data"]
    assert sum(len(trace["x"]) for trace in drawn) == 80


def test_the_budget_counts_time_once_and_trials_each(tmp_path: Path) -> None:
    study = begin(tmp_path / "budget", AUROC, space={}, seconds=100.0)
    study.add_trial(timed(0, 0, 60, [0.1], gpus=2.0))
    study.add_trial(timed(1, 30, 60, [0.1], gpus=0.5))
    study.add_trial(timed(2, 150, 30, state=FAIL, gpus=2.0))  # cut short: it runs again
    study.add_trial(timed(2, 200, 20, [0.1], gpus=2.0))
    files = read_study(tmp_path / "budget")
    assert seconds_searched(files) == 110
    assert seconds_trained(files) == 140
    assert gpu_hours(files) == pytest.approx((60 * 2 + 60 * 0.5 + 20 * 2) / 3600)
    page = page_of(tmp_path / "budget")
    assert "finished, 3 trials done in 1 min 50 s" in page.text
    assert "of 1 min 40 s; trials took 2 min 20 s in sum" in page.text
    assert "0.0528" in page.text


def test_gpu_hours_are_not_guessed(tmp_path: Path) -> None:
    study = begin(tmp_path / "unknown", AUROC, space={}, trials=2)
    study.add_trial(timed(0, 0, 60, [0.1]))
    assert gpu_hours(read_study(tmp_path / "unknown")) is None  # gpus_per_worker: auto
    assert "GPU-hours" not in page_of(tmp_path / "unknown").text


def exploit(epochs: float, donor: int, **values: float) -> dict[str, Any]:
    return {"epochs": epochs, "step": int(epochs * 24), "from": donor, "values": values}


@pytest.fixture
def population(tmp_path: Path) -> Path:
    """Members 0 and 1 swap at epoch 2; at epoch 4 member 2 goes on from member 0."""
    study = begin(tmp_path / "pbt", AUROC, space={}, trials=3, scheduler={"name": "pbt"})
    curves = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    study.add_trial(timed(0, 0, 9, [0.6], pbt=[exploit(2.0, 1, a=1.0)], **curve(curves)))
    study.add_trial(timed(1, 0, 9, [0.5], pbt=[exploit(2.0, 0, a=2.0)], **curve(curves)))
    values = {"model.dropout": 0.25}
    study.add_trial(timed(2, 0, 9, [0.7], pbt=[exploit(4.0, 0, **values)], **curve(curves)))
    return tmp_path / "pbt"


def test_a_members_origin_is_whose_weights_its_donor_carried(population: Path) -> None:
    found = origins(read_study(population).trials)
    assert found == {0: [(0, 0), (2, 1)], 1: [(0, 1), (2, 0)], 2: [(0, 2), (4, 1)]}
    plot = page_of(population).plots("Lineage")
    lines = {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in plot["data"]}
    gap = (None, None)
    assert lines["from 1"] == [(2, 0), (6, 0), gap, (0, 1), (2, 1), gap, (4, 2), (6, 2), gap]
    assert lines["from others"] == [(0, 2), (4, 2), gap]
    arrows = [(arrow["ay"], arrow["y"], arrow["x"]) for arrow in plot["layout"]["annotations"]]
    assert arrows == [(1, 0, 2), (0, 1, 2), (0, 2, 4)]


def test_the_best_member_is_shown_with_the_values_that_it_ended_with(population: Path) -> None:
    page = page_of(population)
    assert ["model.dropout", "0.25"] in [row[:2] for row in page.table("key", "value")]
    assert "these are its last" in page.text
    assert page.table("epochs", "member") == [
        *(
            [
                "2",
                "0",
                "1",
                "1.000",
                "–",
            ],
            ["2", "1", "0", "2.000", "–"],
            ["4", "2", "0", "–", "0.250"],
        )
    ]


def test_attributes_of_another_shape_are_named(tmp_path: Path) -> None:
    study = begin(tmp_path / "foreign", AUROC, space={}, trials=1)
    study.add_trial(timed(0, 0, 9, [0.6], pbt=[{"epochs": 1}]))
    with pytest.raises(InputError, match=r"journal\.log: a trial's attributes are not voxray's"):
        read_study(tmp_path / "foreign")


def test_long_tables_keep_their_header_in_sight(population: Path) -> None:
    raw = Page(page_of(population).raw).raw
    assert "position: sticky" in raw.partition("</style>")[0].partition("th {")[2].partition("}")[0]
    assert "max-height: 75vh" in raw
