"""Every experiment file loads, is listed and trains one step, on a few rows of its task's shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from random_rows import OFFLINE, random_rows, resolved
from voxray.core.experiment import load_experiment
from voxray.core.registry import task_class
from voxray.testing.sources import ArraySource
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/*.yaml"))
FREE_SIZE = 64  # stands for a size that only raw files tell, e.g. an image's side


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_it_trains_one_step(file, tmp_path):
    task_name = file.parent.name
    overrides = [*OFFLINE[task_name], "training.steps=1", f"storage.path={tmp_path}"]
    config = load_experiment(str(file), overrides).config
    assert config.description, "an experiment says what it is"
    task = task_class(config.task)(config)
    schema = resolved(task.schema(), FREE_SIZE)
    source = ArraySource({"train": random_rows(schema, 4, 0), "val": random_rows(schema, 3, 1)})
    reported = []
    fit(task, source, config, RunFolder(tmp_path), reported.append, torch.device("cpu"))
    assert RunFolder(tmp_path).is_finished()
    assert [r["step"] for r in reported] == list(range(1, len(config.resolved_stages()) + 1))


def test_all_are_listed():
    listed = subprocess.run(
        [sys.executable, "-m", "voxray", "ls", "experiments", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = {row["file"] for row in json.loads(listed.stdout)}
    assert files == {str(file.relative_to(ROOT)) for file in EXPERIMENTS}
