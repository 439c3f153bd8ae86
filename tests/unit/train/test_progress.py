"""The view of a run: lines that stay, the live bar, what is best; two runs of `follow` over one log."""

import io

import pytest
from rich.console import Console

from voxray.config.errors import RunError
from voxray.testing.tiny import TinyConfig
from voxray.train import progress
from voxray.train.log_tail import LogTail
from voxray.train.progress import View, duration, epoch_line, fitting, follow, step_numbers
from voxray.train.run_folder import RunFolder

STEP = {
    "kind": "step",
    "stage": "main",
    "epoch": 2,
    "step": 1234,
    "stage_step": 1234,
    "planned": 5000,
    "train/loss": 0.12345,
    "samples_per_s": 2345.6,
    "data_wait_share": 0.031,
    "eta_s": 754.2,
    "memory_gb": 2.14,
    "grad_norm": 1.25,
    "learning_rate": 1e-3,
}


def evaluated(epoch, value, **more):
    place = {"kind": "epoch", "stage": "main", "epoch": epoch, "step": 10 * (epoch + 1)}
    return {**place, "train/loss": 0.5, "val/loss": value, **more}


def config(tmp_path, **training):
    return TinyConfig.model_validate({"training": training, "storage": {"path": str(tmp_path)}})


def console(terminal=False, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, height=30, _environ={})


def printed(console):
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (754.2, "0:12:34"), (2 * 86_400 + 3661, "2 d 1:01:01")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_numbers_of_a_step_say_what_they_are():
    words = step_numbers(STEP, ("val/loss", 0.111))
    assert words == [
        "loss 0.1235",
        "best val/loss 0.1110",
        "0:12:34 left",
        "2,346 samples/s",
        "3% waiting for data",
        "2.1 GB",
        "lr 1.00e-03",
        "gradient 1.2",
    ]
    on_gpu = step_numbers({**STEP, "gpu_memory_gb": 7.25, "gpu_util": 93, "train/loss": None}, None)
    assert on_gpu[0] == "loss n/a"
    assert "7.2 GB" in on_gpu
    assert "2.1 GB" not in on_gpu
    assert "GPU 93 %" in on_gpu
    assert step_numbers({"kind": "step"}, None) == ["loss n/a"]


def test_a_narrow_terminal_keeps_the_first_numbers():
    words = ["loss 0.1235", "0:12:34 left", "2,346 samples/s"]
    assert fitting(words, 80) == "loss 0.1235 · 0:12:34 left · 2,346 samples/s"
    assert fitting(words, 43) == "loss 0.1235 · 0:12:34 left"
    assert fitting(words, 5) == "loss 0.1235"


def test_an_undefined_metric_is_not_applicable():
    line = epoch_line(evaluated(0, None, **{"val/auroc": 0.75}), "val/auroc", better=True)
    assert line == (
        "main epoch   1 · step     10 · train/loss 0.5000 · val/loss n/a · val/auroc 0.7500 (best)"
    )


def test_follow_prints_what_is_logged_meanwhile_and_nothing_before(tmp_path):
    run = RunFolder(tmp_path)
    run.log(evaluated(0, 0.4))  # an earlier attempt: the best to beat, not printed again
    out = console()
    with follow(run, config(tmp_path), out):
        run.log({"kind": "resume", "step": 10, "checkpoint": "step-00000010"})
        run.log(STEP)
        run.log(evaluated(1, 0.45))
        run.log(evaluated(2, 0.35))
        run.log({"kind": "note", "text": "a note [with brackets]"})
        run.log(
            {"kind": "end", "status": "finished", "best": {"metric": "val/loss", "value": 0.35, "step": 30}}
        )
    lines = printed(out).splitlines()
    assert lines[:4] == [
        "resumed from step-00000010",
        "main epoch   2 · step     20 · train/loss 0.5000 · val/loss 0.4500",
        "main epoch   3 · step     30 · train/loss 0.5000 · val/loss 0.3500 (best)",
        "a note [with brackets]",
    ]
    assert lines[4].startswith("finished in 0:00:0")
    assert lines[4].endswith("best val/loss 0.3500 at step 30")
    assert len(lines) == 5


def test_the_best_is_by_the_stages_own_mode(tmp_path):
    view = View(RunFolder(tmp_path), config(tmp_path, monitor="val/auroc", monitor_mode="max"), console())
    for value in (0.6, 0.7, 0.65):
        view.show(evaluated(0, 0.5, **{"val/auroc": value}))
    assert ["(best)" in line for line in printed(view._console).splitlines()] == [True, True, False]


def test_a_long_epoch_gives_a_line_now_and_then(tmp_path, monkeypatch):
    view = View(RunFolder(tmp_path), config(tmp_path, epochs=10), console())
    view.show(STEP)
    assert printed(view._console) == ""
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY_S", 0.0)
    view.show(STEP)
    assert printed(view._console).startswith("main · epoch 3/10 · step   1234 · loss 0.1235 · 0:12:34 left")


@pytest.mark.parametrize(("training", "epochs"), [({"epochs": 10}, "3/10"), ({"steps": 5000}, "3 ")])
def test_a_terminal_gets_a_bar(tmp_path, training, epochs):
    run = RunFolder(tmp_path)
    out = console(terminal=True, width=90)
    view = View(run, config(tmp_path, **training), out)
    with view:
        view.show(STEP)
        view.refresh()
        assert view._live is not None
        view._live.refresh()
    shown = printed(out)
    assert f"main · epoch {epochs}" in shown
    assert "1,234/5,000" in shown
    assert "loss 0.1235 · 0:12:34 left · 2,346 samples/s · 3% waiting for data · 2.1 GB" in shown


def test_the_bodys_error_goes_through(tmp_path):
    with (
        pytest.raises(RunError, match="the loss is NaN"),
        follow(RunFolder(tmp_path), config(tmp_path), console()),
    ):
        raise RunError("the loss is NaN")


def test_a_tail_takes_whole_lines_only(tmp_path):
    file = tmp_path / "log.jsonl"
    tail = LogTail(file)
    assert list(tail.new()) == []
    file.write_text('{"kind": "note", "text": "a"}\n{"kind": "no')
    first = list(tail.new())
    assert [record["text"] for _, record in first] == ["a"]
    tail.position = first[-1][0]
    with file.open("a") as log:  # the writer was killed; the next one began a line of its own
        log.write('\n{"kind": "note", "text": "b"}\n')
    assert [record["text"] for _, record in tail.new()] == ["b"]
