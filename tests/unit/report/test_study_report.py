"""A study's report: the journal's numbers, Optuna's importance, parallel coordinates, the best."""

import json
import math
from itertools import accumulate
from pathlib import Path
from statistics import NormalDist

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from report_folders import SPACE, make_study, page_of, write_json

from voxray.config.errors import InputError
from voxray.report.build import report
from voxray.report.study.importance import TARGET_QUANTILE, importance
from voxray.report.study.read import read_study


def load(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(study_name=folder.name, storage=storage)


def complete(folder: Path) -> list[optuna.trial.FrozenTrial]:
    trials = load(folder).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return sorted(trials, key=lambda trial: trial.user_attrs["index"])


def test_sections_and_status(study: Path) -> None:
    page = page_of(study)
    assert page.headings == ["Search", "Keys", "Trials", "Best trial", "Space"]
    titles = ["History", "Importance", "Parallel coordinates", "Slices", "Contour", "Timeline"]
    assert page.plot_titles == titles
    assert "finished, 8 of 8 trials done" in page.text
    assert "Which learning rate?" in page.text
    assert "experiments/cxr_memory/dev_fast.yaml" in page.text
    assert "1 trial failed: train/loss is nan at step 7" in page.text
    assert not page.unbalanced


def test_history_is_the_journals_values_and_the_best_so_far(study: Path) -> None:
    trials = complete(study)
    line, dots, star = page_of(study).plots("History")["data"]
    drawn = dict(zip(dots["x"] + star["x"], dots["y"] + star["y"], strict=True))
    assert drawn == {trial.user_attrs["index"]: trial.value for trial in trials}
    assert star["y"] == [load(study).best_value]
    assert line["y"] == list(accumulate((trial.value for trial in trials), max))


def test_the_table_has_every_trial_with_its_state(study: Path) -> None:
    rows = page_of(study).table("trial", "state")
    frozen = {trial.user_attrs["index"]: trial for trial in complete(study)}
    top = load(study).best_trial
    assert [row[:2] for row in rows[2:6]] == [
        ["2", "fail"],
        ["3", "complete (best)"],
        ["4", "fail, not done"],
        ["4", "complete"],
    ]
    assert top.user_attrs["index"] == 3
    assert rows[2][-1] == "train/loss is nan at step 7"
    for row in (rows[0], rows[3]):
        trial = frozen[int(row[0])]
        assert row[2] == f"{trial.value:.3f}"
        assert row[3] == f"{trial.params['training.learning_rate']:.4g}"
        assert row[4:6] == [str(trial.params["model.hidden_dim"]), trial.params["training.schedule"]]


def test_importance_is_optunas_ped_anova(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "long", 30)
    study = load(folder)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
    bars = {bars["name"]: bars for bars in page_of(folder).plots("Importance")["data"]}
    drawn = {name: dict(zip(own["y"], own["x"], strict=True)) for name, own in bars.items()}
    assert drawn["PED-ANOVA"] == pytest.approx(expected)
    assert bars["PED-ANOVA"]["y"][-1] == "training.learning_rate"
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(study, evaluator=forest, params=list(SPACE))
    assert drawn["fANOVA"] == pytest.approx(expected)
    assert "take it as a hint" not in page_of(folder).text


def test_importance_from_few_trials_is_called_a_hint_and_from_very_few_refused(
    study: Path, tmp_path: Path
) -> None:
    assert "From 7 complete trials; Optuna advises 20 or more, so take it as a hint." in page_of(study).text
    page = page_of(make_study(tmp_path / "short", 4))
    assert "Importance needs at least 6 complete trials; this study has 3." in page.text
    assert "Importance" not in page.plot_titles


def test_importance_is_undefined_where_all_values_are_equal(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "flat", 0)
    study = load(folder)
    for index in range(8):
        trial = study.ask()
        trial.set_user_attr("index", index)
        trial.suggest_float("model.dropout", 0.0, 0.5)
        study.tell(trial, 0.5)
    assert importance(read_study(folder), 0) is None
    assert "Importance is not defined" in page_of(folder).text


def test_parallel_coordinates_stand_where_the_values_are(study: Path) -> None:
    trials = complete(study)
    plot = page_of(study).plots("Parallel coordinates")
    assert plot["layout"]["xaxis"]["ticktext"][0] == "training.<br>learning_rate<br>(log)"
    assert plot["layout"]["xaxis"]["ticktext"][-1] == "val/auroc"
    lines = {int(line["hovertemplate"].split()[1].rstrip(":")): line for line in plot["data"]}
    assert len(lines) == len(trials)
    rates = [math.log(trial.params["training.learning_rate"]) for trial in trials]
    values = [trial.value for trial in trials]
    for trial, rate in zip(trials, rates, strict=True):
        y = lines[trial.user_attrs["index"]]["y"]
        assert y[0] == pytest.approx((rate - min(rates)) / (max(rates) - min(rates)))
        assert y[1] == [64, 128, 256].index(trial.params["model.hidden_dim"]) / 2
        assert y[2] == ["constant", "cosine"].index(trial.params["training.schedule"])
        assert y[-1] == pytest.approx((trial.value - min(values)) / (max(values) - min(values)))
    assert [line["name"] for line in plot["data"] if line["showlegend"]] == ["best: trial 3"]
    assert plot["data"][-1]["line"]["width"] > plot["data"][0]["line"]["width"]


def test_a_study_that_minimizes_takes_the_lowest(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "low", 0)
    (folder / "journal.log").unlink()
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(study_name="low", storage=storage, direction="minimize")
    for index, value in enumerate((3.0, 1.0, 2.0)):
        trial = study.ask()
        trial.set_user_attr("index", index)
        trial.suggest_float("model.dropout", 0.0, 0.5)
        study.tell(trial, value)
    page = page_of(folder)
    assert page.plots("History")["data"][0]["y"] == [3.0, 1.0, 1.0]
    assert "lower is better" in page.text
    colors = {
        line["hovertemplate"].split()[1]: line["line"]["color"]
        for line in page.plots("Parallel coordinates")["data"]
    }
    assert colors["0:"] == "rgb(158,190,224)"  # the worst is the palest


def test_an_interrupted_study_and_an_empty_one(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "cut", 5)
    saved = json.loads((folder / "study.json").read_text())
    saved["space"]["search"]["trials"] = 12
    write_json(folder / "study.json", saved)
    assert "5 of 12 trials done (still running, or interrupted)" in page_of(folder).text
    saved["space"]["search"]["sampler"] = {"name": "brute_force"}
    write_json(folder / "study.json", saved)
    assert "finished, all 5 combinations tried" in page_of(folder).text
    page = page_of(make_study(tmp_path / "empty", 0))
    assert "No trial is complete yet" in page.text
    assert page.plot_titles == []
    assert "nothing to say about the keys" in page.text


def test_a_value_from_a_normal_distribution_is_shown_and_not_its_quantile(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "normal", 0)
    saved = json.loads((folder / "study.json").read_text())
    saved["space"]["search"]["space"] = {"model.dropout": {"normal": [0.3, 0.05]}}
    write_json(folder / "study.json", saved)
    study = load(folder)
    trial = study.ask()
    quantile = trial.suggest_float("model.dropout", 1e-4, 1 - 1e-4)
    study.tell(trial, 0.5)
    (read,) = read_study(folder).trials
    assert read.values["model.dropout"] == NormalDist(0.3, 0.05).inv_cdf(quantile)


def test_the_best_trials_experiment_is_shown_with_secrets_hidden(study: Path) -> None:
    (study / "best.yaml").write_text(
        "task: cxr_memory\ntraining: {learning_rate: 1e-4}\nwandb: {api_key: S3CRET}\n"
    )
    page = page_of(study)
    assert "S3CRET" not in page.raw
    assert "learning_rate: 0.0001" in page.text
    assert f"voxray train {study / 'best.yaml'}" in page.text
    (study / "best.yaml").unlink()
    assert "best.yaml is not written yet" in page_of(study).text


def test_the_space_is_shown_as_it_was_declared(study: Path) -> None:
    rows = [row for rows in page_of(study).tables for row in rows if len(row) == 2]
    assert ["training.learning_rate", "loguniform: [0.0001, 0.01]"] in rows
    assert {row[0] for row in rows} >= set(SPACE)


def test_names_with_tags_stay_text_in_figures(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "evil", 0)
    study = load(folder)
    for value in (0.1, 0.2):
        trial = study.ask()
        trial.suggest_categorical("<b>x</b>", ["<img src=x>", "b"])
        study.tell(trial, value)
    page = page_of(folder)
    plot = page.plots("Parallel coordinates")
    assert plot["layout"]["xaxis"]["ticktext"][0] == "&lt;b&gt;x&lt;/b&gt;"
    assert not any("<" in note["text"] for note in plot["layout"]["annotations"])
    assert "img" not in [tag for tag, _ in page.elements]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("study.json", "{", r"study\.json cannot be read as JSON"),
        ("study.json", "{}", r"study\.json has no map 'space'"),
        ("journal.log", "nonsense\nnonsense\n", r"journal\.log cannot be read as an Optuna journal"),
        ("journal.log", "", r"journal\.log cannot be read as an Optuna journal"),
        ("best.yaml", "a: [", r"best\.yaml:\d+: is not YAML"),
    ],
)
def test_a_broken_file_is_named(study: Path, name: str, text: str, message: str) -> None:
    (study / name).write_text(text)
    with pytest.raises(InputError, match=message):
        report([study])


def test_a_missing_file_is_named(study: Path) -> None:
    (study / "journal.log").unlink()
    with pytest.raises(InputError, match=r"journal\.log is missing"):
        report([study])
    assert not (study / "journal.log").exists()
