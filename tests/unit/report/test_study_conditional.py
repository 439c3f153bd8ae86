"""A study's keys: gaps where a key was not drawn, importance of those that were, slices, the contour."""

import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from report_folders import Page, page_of
from study_journals import AUROC, CONDITIONAL, RATE, auroc, begin, draw, run_conditional

from voxray.report.study.importance import TARGET_QUANTILE, importance
from voxray.report.study.read import read_study

SHARED = ["training.learning_rate", "model.dropout", "training.optimizer"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "conditional"
    run_conditional(begin(folder, AUROC, trials=24), 24)
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return page_of(study)


def frozen(folder: Path) -> dict[int, optuna.trial.FrozenTrial]:
    return {trial.user_attrs["index"]: trial for trial in read_study(folder).study.trials}


def test_a_line_has_a_gap_where_a_key_was_not_drawn(study: Path, page: Page) -> None:
    plot, trials = page.plots("Parallel coordinates"), frozen(study)
    assert [
        text.replace("<br>(log)", "").rpartition("<br>")[2] for text in plot["layout"]["xaxis"]["ticktext"]
    ] == [*("learning_rate", "dropout", "optimizer", "momentum", "val/auroc")]
    gaps = {int(line["hovertemplate"].split()[1].rstrip(":")): line["y"][3] is None for line in plot["data"]}
    assert gaps == {index: "training.momentum" not in trial.params for index, trial in trials.items()}
    assert 0 < sum(gaps.values()) < len(gaps)
    for line in plot["data"]:
        assert all(0 <= place <= 1 for place in line["y"] if place is not None)


def test_importance_of_keys_that_all_trials_drew_is_optunas_and_names_the_others(
    study: Path, page: Page
) -> None:
    files = read_study(study)
    found = importance(files, 0)
    assert found is not None
    assert found.left_out == ("training.momentum",)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    expected = optuna.importance.get_param_importances(files.study, evaluator=evaluator, params=SHARED)
    assert found.ped_anova == pytest.approx(expected)
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    assert found.fanova == pytest.approx(
        optuna.importance.get_param_importances(files.study, evaluator=forest)
    )
    assert "Left out, as too few trials drew them: training.momentum. From 24 complete trials." in page.text


def test_a_key_that_enough_trials_drew_has_an_importance_too(tmp_path: Path) -> None:
    run_conditional(begin(tmp_path / "long", AUROC, trials=60), 60)
    files = read_study(tmp_path / "long")
    found = importance(files, 0)
    assert found is not None
    assert found.left_out == ()
    assert list(found.fanova) != list(found.ped_anova)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    assert found.ped_anova == pytest.approx(
        optuna.importance.get_param_importances(files.study, evaluator=evaluator)
    )
    assert set(found.fanova) == set(SHARED)
    assert "it sees keys that all trials drew" in page_of(tmp_path / "long").text


def test_a_slice_has_every_trial_that_drew_the_key_at_its_value(study: Path, page: Page) -> None:
    plot, trials = page.plots("Slices"), frozen(study)
    titles = [note["text"] for note in plot["layout"]["annotations"]]
    assert titles == list(CONDITIONAL)
    for place, path in enumerate(titles):
        axis = f"x{place + 1}" if place else "x"
        drawn = [
            point
            for trace in plot["data"]
            if trace["xaxis"] == axis
            for point in zip(trace["x"], trace["y"], strict=True)
        ]
        values = [(trial.params[path], trial.value) for trial in trials.values() if path in trial.params]
        if path == "training.optimizer":
            values = [(["adamw", "sgd"].index(value), score) for value, score in values]
        by_score = {score: value for value, score in values}
        assert len(drawn) == len(values)
        assert all(abs(x - by_score[y]) <= 0.1501 * (path == "training.optimizer") for x, y in drawn)
    assert plot["layout"]["xaxis"]["type"] == "log"
    assert plot["layout"]["xaxis3"]["ticktext"] == ["adamw", "sgd"]
    assert all(plot["layout"][f"yaxis{k}"]["matches"] == "y" for k in (2, 3, 4))


def plane(folder: Path, num_trials: int) -> Path:
    """A study whose score is a plane over log10 of one key and another key."""
    study, chance = begin(folder, AUROC, trials=num_trials), random.Random(0)
    for index in range(num_trials):
        params = {
            "training.learning_rate": 10 ** chance.uniform(-4, -2),
            "model.dropout": chance.uniform(0, 0.5),
        }
        study.add_trial(
            optuna.trial.create_trial(
                value=height(params["training.learning_rate"], params["model.dropout"]),
                params=params,
                distributions={
                    "training.learning_rate": RATE,
                    "model.dropout": optuna.distributions.FloatDistribution(0.0, 0.5),
                },
                user_attrs={"index": index},
            )
        )
    return folder


def height(rate: float, dropout: float) -> float:
    return 0.5 + 0.1 * math.log10(rate) - 0.3 * dropout


def test_the_contour_is_linear_between_trials_and_ends_at_the_outermost(tmp_path: Path) -> None:
    plot = page_of(plane(tmp_path / "plane", 12)).plots("Contour")
    surface, dots = plot["data"]
    at = {"training.": "training.learning_rate", "model.": "model.dropout"}
    first = at[plot["layout"]["xaxis"]["title"]["text"].partition("<br>")[0]]
    known = [
        (x, y, z)
        for y, row in zip(surface["y"], surface["z"], strict=True)
        for x, z in zip(surface["x"], row, strict=True)
        if z is not None
    ]
    assert 300 < len(known) < 1600
    for x, y, z in known:
        assert z == pytest.approx(height(x, y) if first == "training.learning_rate" else height(y, x))
    assert len(dots["x"]) == 12
    assert (surface["zmin"], surface["zmax"]) == (min(dots["marker"]["color"]), max(dots["marker"]["color"]))


def test_few_trials_or_trials_on_one_line_have_no_surface(tmp_path: Path) -> None:
    page = page_of(plane(tmp_path / "few", 9))
    assert [trace["type"] for trace in page.plots("Contour")["data"]] == ["scatter"]
    assert "a surface is drawn from 10 trials on" in page.text
    study = begin(tmp_path / "line", AUROC, trials=12)
    for index in range(12):
        trial = study.ask()
        trial.set_user_attr("index", index)
        for path in ("a", "b"):
            trial.storage.set_trial_param(
                trial._trial_id, path, index / 12, optuna.distributions.FloatDistribution(0.0, 1.0)
            )
        study.tell(trial, float(index))
    assert [trace["type"] for trace in page_of(tmp_path / "line").plots("Contour")["data"]] == ["scatter"]


def test_null_is_a_choice_and_not_a_gap(tmp_path: Path) -> None:
    space = {"training.schedule": {"choice": [None, "cosine"]}, "model.shape": {"choice": [[1, 2], [3]]}}
    study = begin(tmp_path / "null", AUROC, space=space, trials=4)
    for index, (schedule, shape) in enumerate([(None, "[1, 2]"), ("cosine", "[3]")] * 2):
        study.enqueue_trial({"training.schedule": schedule, "model.shape": shape})
        trial = study.ask()
        trial.suggest_categorical("training.schedule", [None, "cosine"])
        trial.suggest_categorical("model.shape", ["[1, 2]", "[3]"])
        trial.set_user_attr("index", index)
        study.tell(trial, float(index))
    plot = page_of(tmp_path / "null").plots("Parallel coordinates")
    lines = {int(line["hovertemplate"].split()[1].rstrip(":")): line["y"][:2] for line in plot["data"]}
    assert lines == {0: [0, 0], 1: [1, 1], 2: [0, 0], 3: [1, 1]}


def test_conditions_and_constraints_stand_in_the_space(tmp_path: Path) -> None:
    constraints = ["model.dropout <= 0.4", "metric('model/params') <= 3e7"]
    study = begin(tmp_path / "space", AUROC, trials=2, constraints=constraints)
    for index in range(2):
        trial = study.ask()
        drawn = draw(trial)
        trial.set_user_attr("index", index)
        trial.set_constraint(constraints[1], float(index))
        study.tell(trial, auroc(drawn))
    refused = study.ask()
    refused.set_user_attr("rejected", constraints[0])
    study.tell(refused, state=optuna.trial.TrialState.FAIL)
    page = page_of(tmp_path / "space")
    assert ["training.momentum", "uniform: [0.0, 0.99]", "training.optimizer: sgd"] in page.table(
        "key", "drawn from"
    )
    assert page.table("constraint", "trials that violate it") == [
        [constraints[0], "0"],
        [constraints[1], "1"],
    ]
    assert "draws refused before they ran: 1" in page.text
    assert [row[0] for row in page.table("trial", "state")] == ["0", "1"]


def test_trials_of_an_earlier_study_stand_apart_and_are_never_best(tmp_path: Path) -> None:
    study = begin(tmp_path / "later", AUROC, trials=8)
    run_conditional(study, 8)
    early: dict[str, Any] = {"training.learning_rate": 2e-3}
    study.add_trial(
        optuna.trial.create_trial(
            value=0.99,
            params=early,
            distributions={"training.learning_rate": RATE},
            user_attrs={"from_study": "runs/cxr_memory/studies/early"},
        )
    )
    files, page = read_study(tmp_path / "later"), page_of(tmp_path / "later")
    assert files.best is not None
    assert files.best.value == max(trial.value or 0 for trial in files.trials) < 0.99
    assert page.table("from", "state") == [["runs/cxr_memory/studies/early", "complete", "0.990", "0.002"]]
    assert len(page.table("trial", "state")) == 8
    assert "From 8 complete trials" in page.text
    assert 0.99 not in [y for trace in page.plots("History")["data"] for y in trace["y"]]
