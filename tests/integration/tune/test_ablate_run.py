"""Ablations of the tiny task on a real Ray cluster: the command, its cells, its tables, and a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from voxray.cli.main import main
from voxray.config.errors import InputError
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.run_folder import RunFolder
from voxray.tune.ablation.cells import load_ablation
from voxray.tune.ablation.run import open_ablation
from voxray.tune.plan import load_plan

EXPERIMENT = """
task: voxray.testing.tiny:Tiny
data: {{path: {dataset}}}
training: {{epochs: 2, batch_size: 25, learning_rate: 3e-2}}
"""
# The planted effect: a rate a thousand times too small learns nothing in two epochs.
SPACE = """
description: tiny arms
experiment: base.yaml
objective: {metric: val/loss, mode: min}
ablate:
  seeds: [0, 1, 2]
  max_concurrent: 2
  arms: {slow: {training.learning_rate: 3e-5}}
  off: {training.weight_decay: 0}
"""
NUM_CELLS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    rows = {"train": tiny_rows(100, 1), "val": tiny_rows(50, 2)}
    dataset = write_dataset(folder / "data", Tiny(TinyConfig()).schema(), rows, 50)
    (folder / "base.yaml").write_text(EXPERIMENT.format(dataset=dataset))
    (folder / "tiny_arms.yaml").write_text(SPACE)
    return folder


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["ablate", *arguments])
    return end.value.code


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(240)
def test_the_command_from_a_dry_run_to_the_tables(folder, capsys):
    from voxray.train.worker import train_here

    command = [str(folder / "tiny_arms.yaml"), f"storage.path={folder / 'runs'}"]
    assert run(*command, "--dry-run") == 0
    said = capsys.readouterr()
    assert "0 of 9 cells are done; --dry-run: nothing was trained" in said.out
    assert not (folder / "runs").exists()

    assert run(*command) == 0
    said = capsys.readouterr()
    assert "9 of 9 cells to train, 2 at a time" in said.err
    assert sum(line.startswith("cell ") for line in said.err.splitlines()) == NUM_CELLS
    assert "val/loss (lower is better)" in said.out
    study = folder / "runs" / "Tiny" / "studies" / "tiny_arms"
    assert {f"ablation.{suffix}" for suffix in ("json", "md", "csv", "tex", "html")} <= {
        path.name for path in study.iterdir()
    }
    assert not (study / "ray").exists()

    # Each cell is a run, whose log has the score; one of them trained here again has it to the last digit.
    saved = json.loads((study / "ablation.json").read_text())
    assert len({cell["key"] for cell in saved["cells"]}) == NUM_CELLS
    for cell in saved["cells"]:
        records = RunFolder(folder / "runs" / "Tiny" / "cells" / cell["key"]).records()
        losses = [record["val/loss"] for record in records if record["kind"] == "epoch"]
        assert len(losses) == 2
        assert cell["scores"] == [min(losses)]
    ablation = load_ablation(load_plan(command[0], command[1:]))
    chosen = ablation.cells[4]
    losses = []
    (folder / "again").mkdir()
    config = ablation.run_config(chosen).config
    train_here(config, folder / "again", lambda metrics: losses.append(metrics["val/loss"]))
    assert saved["cells"][4]["scores"] == [min(losses)]
    slow = saved["tables"][0]["rows"][1]
    assert (slow["arm"], slow["verdict"], slow["wins"]) == ("slow", "worse", 0)

    # The same command again trains nothing, and prints the same table.
    assert run(*command, "--json") == 0
    said = capsys.readouterr()
    assert "nothing to train: all 9 cells are done" in said.err
    rows = json.loads(said.out)
    assert [row["arm"] for row in rows] == ["baseline", "slow", "without weight_decay"]
    assert rows[1]["p_holm"] == slow["p_holm"]
    assert run(*command, "--dry-run") == 0
    assert "all 9 cells are done" in capsys.readouterr().out


def test_other_data_under_the_same_path_are_refused(folder, tmp_path):
    rows = {"train": tiny_rows(100, 1), "val": tiny_rows(50, 2)}
    dataset = write_dataset(tmp_path / "data", Tiny(TinyConfig()).schema(), rows, 50)
    (tmp_path / "base.yaml").write_text(EXPERIMENT.format(dataset=dataset))
    (tmp_path / "arms.yaml").write_text(SPACE)
    ablation = load_ablation(load_plan(str(tmp_path / "arms.yaml"), [f"storage.path={tmp_path / 'runs'}"]))
    from voxray.train.worker import train_here

    with open_ablation(ablation) as ledger:
        job = ledger.job(ledger.ask(ledger.remaining()[0]), "inline")
        train_here(job.runs[0].config, job.runs[0].path, lambda metrics: None)
        ledger.finish(0, job)
    with open_ablation(ablation) as ledger:
        assert ledger.left() == list(range(1, NUM_CELLS))
    dataset.rename(tmp_path / "old")
    with open_ablation(ablation) as ledger:  # what is done needs no data
        assert len(ledger.rows()) == 1
    other = {"train": tiny_rows(100, 3), "val": tiny_rows(50, 2)}
    write_dataset(dataset, Tiny(TinyConfig()).schema(), other, 50)
    with pytest.raises(InputError, match=f"holds other data than .* train them anew: {ledger.cell(0).key}$"):
        open_ablation(ablation).__enter__()


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_driver_killed_in_the_middle_goes_on_and_trains_no_cell_twice(folder, tmp_path):
    command = [sys.executable, "-m", "voxray", "ablate", str(folder / "tiny_arms.yaml")]
    command += [f"storage.path={tmp_path}", "training.epochs=6"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    first = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    seen = 0
    while seen < 4:
        line = first.stderr.readline()
        assert line
        seen += line.startswith("cell ")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert "of 9 cells to train" in done.stderr
    ended = [line for line in done.stderr.splitlines() if line.startswith("cell ")]
    assert len(ended) <= NUM_CELLS - 4
    cells = sorted((tmp_path / "Tiny" / "cells").glob("*/log.jsonl"))
    assert len(cells) == NUM_CELLS
    for log in cells:
        records = RunFolder(log.parent).records()
        assert [record["step"] for record in records if record["kind"] == "epoch"] == [4, 8, 12, 16, 20, 24]
