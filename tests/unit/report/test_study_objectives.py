"""Several objectives and constraints: Optuna's front, infeasible trials never best, figures for each."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import optuna
import pytest
from report_folders import Page, page_of
from study_journals import AUROC, LIMIT, LOSS, PARAMS, auroc, begin, draw, run_compromises, timed

from voxray.config.errors import InputError
from voxray.report.study.importance import TARGET_QUANTILE, importance
from voxray.report.study.read import read_study


@pytest.fixture(scope="module", params=[2, 3])
def study(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("objectives") / "both"
    objectives = (AUROC, PARAMS, LOSS)[: request.param]
    run_compromises(begin(folder, *objectives, trials=40), 40, request.param)
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> Page:
    return page_of(study)


def indices(trials: list[optuna.trial.FrozenTrial]) -> set[int]:
    return {trial.user_attrs["index"] for trial in trials}


def test_the_front_is_optunas_and_has_no_infeasible_trial(study: Path, page: Page) -> None:
    files = read_study(study)
    expected = indices(files.study.best_trials)
    assert {trial.index for trial in files.front} == expected
    assert 1 < len(expected) < 20
    assert {int(row[0]) for row in page.table("trial", "val/auroc")} == expected
    violated = {t.user_attrs["index"] for t in files.study.trials if t.constraints[LIMIT] > 0}
    assert violated
    marked = {int(row[0]): row[1] for row in page.table("trial", "state")}
    assert {index for index, state in marked.items() if "infeasible" in state} == violated
    assert {index for index, state in marked.items() if state == "complete (front)"} == expected
    assert f"violates {LIMIT}" in page.text


def test_the_front_is_drawn_pair_by_pair_with_every_kind_told_apart(study: Path, page: Page) -> None:
    files, plot = read_study(study), page.plots("Pareto front")
    num = len(files.objectives)
    pairs = [(0, 1), (0, 2), (1, 2)][: 1 if num == 2 else 3]
    points = [trace for trace in plot["data"] if trace["mode"] == "markers"]
    assert [trace["name"] for trace in points] == ["complete", "infeasible", "front"] * len(pairs)
    assert len({trace["marker"]["symbol"] for trace in points}) == 3
    front = [trial.values for trial in files.study.best_trials]
    for (i, j), trace in zip(pairs, points[2::3], strict=True):
        drawn = zip(trace["x"], trace["y"], strict=True)
        assert set(drawn) == {(values[i], values[j]) for values in front}
    borders = [trace for trace in plot["data"] if trace["mode"] == "lines"]
    assert len(borders) == (num == 2)
    for border in borders:
        steps = list(zip(border["x"], border["y"], strict=True))
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(steps))  # more AUROC costs parameters
        assert border["line"]["shape"] == "vh"


@pytest.mark.filterwarnings("ignore:PedAnovaImportanceEvaluator")
def test_each_objective_has_its_history_and_importance(study: Path, page: Page) -> None:
    files = read_study(study)
    for place, objective in enumerate(files.objectives):
        line, *_ = page.plots(f"History of {objective.metric}")["data"]
        feasible = [trial for trial in files.study.trials if trial.constraints[LIMIT] <= 0]
        extreme = max if objective.maximize else min
        assert line["y"][-1] == extreme(trial.values[place] for trial in feasible)
        found, sign = importance(files, place), objective.sign
        assert found is not None
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
        expected = optuna.importance.get_param_importances(
            files.study,
            evaluator=evaluator,
            params=list(found.ped_anova),
            target=lambda trial, place=place, sign=sign: sign * trial.values[place],
        )
        assert found.ped_anova == pytest.approx(expected)
        assert f"Importance for {objective.metric}" in page.plot_titles
        assert f"Slices of {objective.metric}" in page.plot_titles


def test_what_to_type_for_a_trial_of_the_front(study: Path, page: Page, tmp_path: Path) -> None:
    assert "experiment files are not written yet" in page.text
    study = Path(shutil.copytree(study, tmp_path / "both"))
    front = sorted(read_study(study).front, key=lambda trial: -(trial.value or 0))
    for trial in front:
        file = study / "front" / f"{trial.index:04d}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("task: cxr_memory\n")
    page = page_of(study)
    assert f"voxray train {study}/front/{front[0].index:04d}.yaml" in page.text
    column = 1 + len(read_study(study).objectives)
    named = [row[column] for row in page.table("trial", "val/auroc")]
    assert named == [f"front/{trial.index:04d}.yaml" for trial in front]


def test_an_infeasible_trial_is_not_the_best_of_one_objective(tmp_path: Path) -> None:
    study = begin(tmp_path / "one", AUROC, trials=12)
    for index in range(12):
        trial = study.ask()
        score = auroc(draw(trial))
        trial.set_user_attr("index", index)
        trial.set_constraint(LIMIT, 1.0 if score > 0.74 else -1.0)
        study.tell(trial, score)
    files, page = read_study(tmp_path / "one"), page_of(tmp_path / "one")
    assert files.best is not None
    assert files.best.index == study.best_trial.user_attrs["index"]
    assert files.best.value < max(trial.value for trial in study.trials)
    line = page.plots("History")["data"][0]
    assert line["y"][-1] == study.best_value
    assert f"Trial {files.best.index}: val/auroc = " in page.text


def test_nothing_feasible_is_said(tmp_path: Path) -> None:
    for name, objectives in (("one", (AUROC,)), ("two", (AUROC, PARAMS))):
        study = begin(tmp_path / name, *objectives, trials=1)
        trial = study.ask()
        trial.suggest_float("model.dropout", 0.0, 0.5)
        trial.set_constraint(LIMIT, 1.0)
        study.tell(trial, [0.5] * len(objectives))
        assert "within the constraints" in page_of(tmp_path / name).text


def test_a_stopped_trial_has_the_scores_of_its_last_evaluation(tmp_path: Path) -> None:
    study = begin(tmp_path / "two", AUROC, PARAMS, space={}, trials=2)
    attributes = {"at/48": [2.0, 0.6, 5e6], "at/24": [1.0, 0.7, 5e6]}
    study.add_trial(timed(0, 0, 10, [0.8, 9e6]))
    study.add_trial(timed(1, 0, 5, state=optuna.trial.TrialState.PRUNED, **attributes))
    files = read_study(tmp_path / "two")
    assert files.trials[1].scores == (0.6, 5e6)
    assert [trial.index for trial in files.front] == [0]
    crosses = page_of(tmp_path / "two").plots("Pareto front")["data"][1]
    assert (crosses["name"], crosses["x"], crosses["y"]) == ("pruned, last value", [0.6], [5e6])


def test_files_of_two_studies_are_refused(study: Path, tmp_path: Path) -> None:
    study = Path(shutil.copytree(study, tmp_path / "both"))
    saved = json.loads((study / "study.json").read_text())
    saved["space"]["objective"] = AUROC
    (study / "study.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"study\.json names 1 objectives and journal\.log [23]"):
        read_study(study)
