"""`voxray compare`: values equal those in the files, only what differs is shown, a study gives its best."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_folders import add_evaluation, write_json
from study_journals import AUROC, LIMIT, PARAMS, begin, timed

from voxray.cli.main import main
from voxray.config.errors import InputError
from voxray.report.compare import compare, short_names


@pytest.fixture
def other(run: Path) -> Path:
    other = run.with_name("other")
    shutil.copytree(run, other)
    saved = json.loads((other / "config.json").read_text())
    saved["config"]["training"]["learning_rate"] = 0.5
    saved["config"]["description"] = "another " * 30
    saved["config"]["logging"]["api_key"] = "hunter2"
    (other / "config.json").write_text(json.dumps(saved))
    return other


def facts(*folders: Path, top: int = 5) -> dict[str, tuple[Any, ...]]:
    rows = compare(folders, top).rows
    return {row["what"]: tuple(value for name, value in row.items() if name != "what") for row in rows}


def test_only_differing_keys_are_shown_beside_words_and_values(run: Path, other: Path) -> None:
    evaluation = add_evaluation(other)
    rows = facts(run, other)
    before = json.loads((run / "config.json").read_text())["config"]["training"]["learning_rate"]
    assert rows["training.learning_rate"] == (before, 0.5)
    assert rows["description"][1].startswith("another")
    assert rows["val/auroc evaluated"] == (None, evaluation["metrics"]["auroc"])
    assert rows["val/auroc 95 % interval"] == (None, evaluation["intervals"]["auroc"])
    assert rows["folder"] == (str(run), str(other))
    assert "training.batch_size" not in rows
    assert "hunter2" not in str(rows)


def test_words_of_all_runs_are_said_once(run: Path, other: Path) -> None:
    found = compare([run, other])
    assert set(found.shared) == {"experiment_name", "hypothesis", "expected", "tags"}
    told = [row["what"] for row in found.differing]
    assert told[:2] == ["folder", "description"]
    assert not set(found.shared) & set(told)


def test_one_run_or_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two runs or more"):
        compare([run])
    with pytest.raises(InputError, match=r"config\.json is missing"):
        compare([run, tmp_path])
    with pytest.raises(InputError, match="named twice"):
        compare([run, run])


def test_names_are_as_short_as_tells_them_apart() -> None:
    folders = [Path("/a/x/0001"), Path("/a/y/0001"), Path("/a/y/0002")]
    assert short_names(folders) == ["x/0001", "y/0001", "y/0002"]
    assert short_names(folders[1:]) == ["0001", "0002"]


def save_run(folder: Path, rate: float) -> None:
    config = {"training": {"learning_rate": rate, "epochs": 3}, "description": f"Trial {folder.name}"}
    write_json(folder / "config.json", {"config": config})


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """Scores by trial: 0.5, 0.9 (infeasible), 0.7, 0.6, and 0.8 as the mean of two seeds."""
    study = begin(tmp_path / "search", AUROC, space={}, trials=5)
    for index, score in enumerate((0.5, 0.9, 0.7, 0.6, 0.8)):
        seeds = {"seeds": [[0.7], [0.9]]} if index == 4 else {}
        trial = timed(index, 0, 5, [score], **seeds)
        trial.set_constraint(LIMIT, 1.0 if index == 1 else -1.0)
        study.add_trial(trial)
        for name in (f"{index:04d}-seed0", f"{index:04d}-seed1") if index == 4 else (f"{index:04d}",):
            save_run(tmp_path / "search" / "trials" / name, rate=index / 100)
    return tmp_path / "search"


def test_a_study_gives_its_best_feasible_trials_the_best_first(search: Path) -> None:
    rows = facts(search, top=3)
    assert rows["folder"] == tuple(str(search / "trials" / name) for name in ("0004-seed0", "0002", "0003"))
    assert rows["val/auroc of the trial"] == (0.8, 0.7, 0.6)
    assert rows["± sd of val/auroc, 2 seeds"] == (pytest.approx(0.02**0.5), None, None)
    assert rows["training.learning_rate"] == (0.04, 0.02, 0.03)
    assert "description" not in rows  # it says the trial's number alone
    assert "training.epochs" not in rows
    assert len(facts(search)["folder"]) == 4


def test_of_several_objectives_the_front_comes_first(tmp_path: Path) -> None:
    study = begin(tmp_path / "two", AUROC, PARAMS, space={}, trials=3)
    for index, scores in enumerate(([0.8, 9.0], [0.79, 9.5], [0.5, 1.0])):
        study.add_trial(timed(index, 0, 5, scores))
        save_run(tmp_path / "two" / "trials" / f"{index:04d}", rate=index / 100)
    names = [Path(folder).name for folder in facts(tmp_path / "two")["folder"]]
    assert names == ["0000", "0002", "0001"]


def test_an_ablation_is_sent_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "study.json", {})
    monkeypatch.setattr("voxray.report.compare.is_ablation", lambda folder: folder == tmp_path)
    with pytest.raises(InputError, match="is an ablation; `voxray report"):
        compare([tmp_path])


def test_the_printed_table_fits_the_terminal(
    run: Path, other: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as done:
        main(["compare", str(run), str(other)])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "experiment_name: dev_fast"
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("what ")) :]
    assert max(map(len, table)) <= 90
    assert sum("another" in line for line in table) > 4
    assert table[0].split() == ["what", "dev_fast", "other"]


def test_json_has_every_row(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(search), "--top", "2", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads(json.dumps(compare([search], 2).rows))
    assert rows[0] == {
        "what": "folder",
        "0004-seed0": str(search / "trials" / "0004-seed0"),
        "0002": str(search / "trials" / "0002"),
    }
