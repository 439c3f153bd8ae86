"""The run's folder: its log across resumes and kills, and what may differ on resume."""

import json
import math

import pytest

from voxray.config.errors import InputError
from voxray.train.run_folder import RunFolder, differences


def test_a_resume_takes_back_what_is_made_again(tmp_path):
    run = RunFolder(tmp_path)
    for step in range(1, 6):
        run.log({"kind": "step", "step": step, "train/loss": 1.0})
    run.log({"kind": "rank", "rank": 0})
    run.log({"kind": "end", "status": "finished"})
    assert run.is_finished()
    run.log({"kind": "resume", "step": 3, "checkpoint": "step-00000003"})
    run.log({"kind": "step", "step": 4, "train/loss": 2.0})
    assert [(r["kind"], r.get("step")) for r in run.records()] == [
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("resume", 3),
        ("step", 4),
    ]
    assert not run.is_finished()


def test_a_line_cut_short_by_a_kill_harms_no_other(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"kind": "step", "step": 1})
    with run.log_file.open("a") as file:
        file.write('{"kind": "step", "st')
    assert [r["step"] for r in run.records()] == [1]
    run.log({"kind": "resume", "step": 1, "checkpoint": "step-00000001"})
    run.log({"kind": "step", "step": 2})
    assert [r["step"] for r in run.records() if r["kind"] == "step"] == [1, 2]


@pytest.mark.parametrize("line", ["nonsense", "3", ""])
def test_any_other_broken_line_is_an_input_error(tmp_path, line):
    run = RunFolder(tmp_path)
    run.log_file.write_text(f'{{"kind": "step", "step": 1}}\n{line}\n{{"kind": "step", "step": 2}}\n')
    with pytest.raises(InputError, match=r"log\.jsonl:2 is no JSON map; delete that line"):
        run.records()


def test_nan_is_written_as_null(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"kind": "epoch", "val/auroc": math.nan, "val/auroc_per_class": [0.5, math.nan], "x": math.inf})
    assert json.loads(run.log_file.read_text()) == {
        "kind": "epoch",
        "val/auroc": None,
        "val/auroc_per_class": [0.5, None],
        "x": None,
    }


def test_only_scale_logging_checkpoints_and_more_epochs_may_differ():
    before = {"training": {"epochs": 3, "seed": 1}, "scale": {"num_workers": 1}, "stages": [{"epochs": 2}]}
    fewer = {"training": {"epochs": 2, "seed": 2}, "scale": {"num_workers": 2}, "stages": [{"epochs": 5}]}
    assert differences(before, before) == []
    assert differences(before, fewer) == [
        "training.epochs: 3 before, 2 now",
        "training.seed: 1 before, 2 now",
    ]


def test_sections_that_training_does_not_read_may_differ():
    before, now = ({"generation": {"steps": steps}, "data": {"path": "a"}} for steps in (2, 3))
    assert differences(before, now, ("generation",)) == []
    assert differences(before, now) == ["generation.steps: 2 before, 3 now"]


def test_a_folder_that_is_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        RunFolder(tmp_path).config()
