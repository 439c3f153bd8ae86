"""`voxray compare`: values equal those in the files, and only differing keys are shown."""

import json
import shutil
from pathlib import Path

import pytest
from report_folders import add_evaluation

from voxray.config.errors import InputError
from voxray.report.compare import compare


@pytest.fixture
def other(run: Path) -> Path:
    other = run.with_name("other")
    shutil.copytree(run, other)
    saved = json.loads((other / "config.json").read_text())
    saved["config"]["training"]["learning_rate"] = 0.5
    saved["config"]["description"] = "another"
    saved["config"]["logging"]["api_key"] = "hunter2"
    (other / "config.json").write_text(json.dumps(saved))
    return other


def test_only_differing_keys_are_shown_beside_words_and_values(run: Path, other: Path) -> None:
    evaluation = add_evaluation(other)
    rows = {row["what"]: (row[str(run)], row[str(other)]) for row in compare([run, other])}
    before = json.loads((run / "config.json").read_text())["config"]["training"]["learning_rate"]
    assert rows["training.learning_rate"] == (before, 0.5)
    assert rows["description"][1] == "another"
    assert rows["val/auroc evaluated"] == (None, evaluation["metrics"]["auroc"])
    assert rows["val/auroc 95 % interval"] == (None, evaluation["intervals"]["auroc"])
    assert "training.batch_size" not in rows
    assert "hunter2" not in str(rows)


def test_one_run_or_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two runs or more"):
        compare([run])
    with pytest.raises(InputError, match=r"config\.json is missing"):
        compare([run, tmp_path])
