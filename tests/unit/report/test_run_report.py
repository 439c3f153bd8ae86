"""A run's report: the numbers of its files, what is missing, what is broken."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_folders import add_evaluation, log_records, page_of, write_json

from voxray.config.errors import InputError
from voxray.core import log_plots
from voxray.report.build import report
from voxray.report.read import read_predictions, read_run
from voxray.report.run import source_of
from voxray.train.run_folder import read_log


def test_sections_and_what_the_user_wrote(run: Path) -> None:
    add_evaluation(run)
    page = page_of(run)
    assert page.headings == [
        "Curves",
        "Evaluation on val",
        "Speed and timings",
        "Checkpoints",
        "Config",
        "Origin",
    ]
    for text in (
        "A small run",
        "A small network sees the textures.",
        "AUROC above the linear floor.",
        "demo",
    ):
        assert text in page.text
    assert "finished" in page.text


def test_curves_are_the_logs_numbers(run: Path) -> None:
    page = page_of(run)
    steps = [record for record in log_records() if record["kind"] == "step"]
    epochs = [record for record in log_records() if record["kind"] == "epoch"]

    def check(title: str, trace: int, records: list[dict[str, Any]], key: str) -> None:
        drawn = page.plots(title)["data"][trace]
        assert drawn["x"] == [record["step"] for record in records]
        assert drawn["y"] == [record[key] for record in records]

    check("Loss", 0, steps, "train/loss")
    check("Loss", 1, epochs, "val/loss")
    check("val/auroc", 0, epochs, "val/auroc")
    check("Learning rate", 0, steps, "learning_rate")
    check("Throughput", 0, steps, "samples_per_s")
    check("Waiting for data", 0, steps, "data_wait_share")
    star, chance = page.plots("val/auroc")["data"][1:]
    assert (star["x"], star["y"]) == ([240], [max(record["val/auroc"] for record in epochs)])
    assert chance["y"] == [0.5, 0.5]
    assert "val/num_defined" not in page.plot_titles


def test_tables_are_the_files_numbers(run: Path) -> None:
    evaluation = add_evaluation(run)
    page = page_of(run)
    expected = [
        [row["label"], str(row["positives"])]
        + [
            "–" if row["auroc"] is None else text
            for text in (
                f"{row['auroc'] or 0:.3f}",
                f"{row['low'] or 0:.3f} – {row['high'] or 0:.3f}",
                f"{row['floor'] or 0:.3f}",
            )
        ]
        for row in evaluation["table"]
    ]
    assert page.table("label", "positives") == expected
    assert "95 % interval 0.731 – 0.822" in page.text
    assert "auroc: the model is 0.218 above the linear floor" in page.text
    assert page.table("rank", "rows") == [["0", "3,840", "box", "100"], ["1", "3,840", "box", "101"]]
    assert [row[0] for row in page.table("checkpoint", "size in MB")] == [
        "step-00000180",
        "step-00000240",
        "step-00000999",
    ]
    best, broken = page.table("checkpoint", "size in MB")[1:]
    assert best[1:] == ["1.500", "complete", "best"]
    assert broken[2] == "unfinished, not used"


def test_every_config_value_stands_with_its_source(run: Path) -> None:
    page = page_of(run)
    chosen, everything = (rows[1:] for rows in page.tables if rows[0][0] == "key")
    assert chosen == [
        ["training.batch_size", "32", "experiments/cxr_memory/dev_fast.yaml:12"],
        ["scale.num_workers", "2", "command line"],
    ]
    values = {row[0]: row[1:] for row in everything}
    assert values["training.epochs"] == ["10", "default"]
    assert values["training.learning_rate"] == ["0.001", ""]
    assert values["training.early_stopping"] == ["false", ""]
    assert values["tags.1"] == ["cxr", ""]


def test_origin(run: Path) -> None:
    page = page_of(run)
    origin = dict(page.table("", "value"))
    assert origin["commit"] == "0123456789abcdef0123456789abcdef01234567"
    assert origin["uncommitted changes"] == "yes, saved as uncommitted.diff"
    assert "voxray train dev_fast scale.num_workers=2" in page.text
    assert ["ray", "2.60.0"] in page.table("package", "version")


def test_source_of_a_value_inside_a_list_is_the_lists() -> None:
    sources = {"tags": "a.yaml:3", "stages.0.epochs": "b.yaml:9"}
    assert source_of("tags.1", sources) == "a.yaml:3"
    assert source_of("stages.0.epochs", sources) == "b.yaml:9"
    assert source_of("stages.0.name", sources) == ""


def test_seconds_add_up_over_resumed_attempts(run: Path) -> None:
    times = (5.0, 9.0, 2.0, 6.5)  # the second attempt's clock starts again
    lines = [
        json.dumps({"kind": "step", "step": i, "train/loss": 1.0, "time_s": t}) for i, t in enumerate(times)
    ]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert "whole run 15.5 s" in page_of(run).text


def test_a_step_made_twice_is_drawn_once(run: Path) -> None:
    first, again = (
        json.dumps({"kind": "step", "stage": "main", "step": 10, "train/loss": loss}) for loss in (2.0, 1.0)
    )
    lines = [first, '{"kind": "resume", "step": 0, "checkpoint": "the beginning"}', again]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert page_of(run).plots("Loss")["data"][0]["y"] == [1.0]


def test_stages_are_marked_where_they_begin(run: Path) -> None:
    steps = [(10, "align"), (20, "align"), (30, "<prior>")]
    lines = [json.dumps({"kind": "step", "stage": s, "step": i, "train/loss": 1.0}) for i, s in steps]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    marks = page_of(run).plots("Loss")["layout"]["annotations"]
    assert [(mark["x"], mark["text"]) for mark in marks] == [(10, "align"), (30, "&lt;prior&gt;")]


def test_a_long_log_is_thinned_and_says_so(run: Path) -> None:
    num = 3 * log_plots.MAX_POINTS + 1
    lines = [
        json.dumps({"kind": "step", "stage": "m", "step": i, "train/loss": 1.0 / i})
        for i in range(1, num + 1)
    ]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    page = page_of(run)
    drawn = page.plots("Loss")["data"][0]
    assert len(drawn["x"]) <= log_plots.MAX_POINTS + 1
    assert (drawn["x"][0], drawn["x"][-1]) == (1, num)
    assert "Every 4th of 6,001 logged updates is drawn." in page.text


# --- what is missing
def test_a_run_that_was_not_evaluated_says_how(run: Path) -> None:
    assert f"voxray evaluate {run} --floor" in page_of(run).text


def test_missing_optional_files(run: Path) -> None:
    add_evaluation(run)
    for name in ("provenance.json", "log.jsonl", "predictions_val.parquet", "checkpoints/best.json"):
        (run / name).unlink()
    page = page_of(run)
    assert "not started" in page.text
    assert "The log holds no updates yet." in page.text
    assert "This run has no provenance.json" in page.text
    assert f"voxray evaluate {run} --split val" in page.text
    assert "AUROC per finding, val" in page.plot_titles


def test_a_dataset_that_is_gone_costs_the_images_only(run: Path, dataset: Path) -> None:
    add_evaluation(run)
    (dataset / "manifest.json").unlink()
    page = page_of(run)
    assert f"No samples are shown: '{dataset}' is no dataset" in page.text
    assert "AUROC per finding, val" in page.plot_titles


def test_without_a_floor_the_command_is_named(run: Path) -> None:
    evaluation = add_evaluation(run)
    write_json(run / "evaluation_val.json", evaluation | {"floor": None})
    assert f"voxray evaluate {run} --split val --floor" in page_of(run).text


def test_a_model_below_the_floor_is_said_to_be(run: Path) -> None:
    evaluation = add_evaluation(run)
    write_json(
        run / "evaluation_val.json",
        evaluation | {"floor": {"auroc": 0.8, "loss": 0.3123, "num_defined": 13.0}},
    )
    text = page_of(run).text
    assert "auroc: the model is 0.019 below the linear floor." in text
    assert "loss of the linear floor" not in text


def test_a_run_that_goes_on_is_not_called_finished(run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    assert "not finished (still running, or killed)" in page_of(run).text


def test_a_task_outside_voxray_has_no_figures_of_its_own(run: Path) -> None:
    add_evaluation(run)
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["task"] = "my_package.module:Mine"
    write_json(run / "config.json", saved)
    page = page_of(run)
    assert page.table("label", "positives")
    assert "AUROC per finding, val" not in page.plot_titles


# --- what is broken
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", r"config\.json cannot be read as JSON"),
        ("config.json", "{}", r"config\.json has no map 'config'"),
        ("provenance.json", "[]", r"provenance\.json holds no JSON map"),
        ("log.jsonl", '{"kind": "step"}\nnonsense\n', r"log\.jsonl:2 is no JSON map"),
        ("log.jsonl", "3\n", r"log\.jsonl:1 is no JSON map"),
        ("evaluation_val.json", "{", r"evaluation_val\.json cannot be read as JSON"),
        ("evaluation_val.json", '{"table": "x"}', r"evaluation_val\.json is no evaluation: 'table'"),
        ("evaluation_val.json", '{"table": [1]}', r"evaluation_val\.json is no evaluation: 'table'"),
        ("predictions_val.parquet", "PAR1", r"predictions_val\.parquet cannot be read"),
        ("checkpoints/best.json", "]", r"best\.json cannot be read as JSON"),
    ],
)
def test_a_broken_file_is_named(run: Path, name: str, text: str, message: str) -> None:
    add_evaluation(run)
    (run / name).write_text(text)
    with pytest.raises(InputError, match=message):
        report([run])
    assert not (run / "report.html").exists()


def test_a_last_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "step", "value": NaN}\n{"kind": "st')
    assert read_log(tmp_path / "log.jsonl") == [{"kind": "step", "value": None}]


def test_a_folder_that_is_neither_and_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        report([tmp_path, tmp_path / "gone"])
    assert "neither a run" in caught.value.problems[0]
    assert f"there is no folder '{tmp_path / 'gone'}'" in caught.value.problems[1]


def test_a_run_without_its_config_is_named(run: Path) -> None:
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        read_run(run)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.1, 0.2], [0.3]], "different lengths"),
        ([[0.1], None], "different lengths"),
        ([["a"], ["b"]], "not lists of floats"),
        ([0.1, 0.2], "not lists of floats"),
        ([[0.1], [0.2]], r"scores have the shape \(2, 1\), labels \(2, 2\)"),
    ],
)
def test_predictions_of_another_form_are_refused(tmp_path: Path, scores: list[Any], message: str) -> None:
    columns = {
        "sample_id": ["a", "b"],
        "group_id": ["p", "q"],
        "scores": scores,
        "labels": [[0.0, 1.0], [1.0, 0.0]],
    }
    pq.write_table(pa.table(columns), tmp_path / "predictions_val.parquet")
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path, "val")
