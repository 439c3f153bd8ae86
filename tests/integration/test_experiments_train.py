"""Every experiment file loads, is listed and trains one step, on a few rows of its task's shape."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from voxray.core.experiment import load_experiment
from voxray.core.registry import task_class
from voxray.core.schema import TEXT, Schema
from voxray.testing.sources import ArraySource
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/*.yaml"))
FREE_SIZE = 64  # stands for a size that only raw files tell, e.g. an image's side
# What no test may need: weights from a hub.
OFFLINE = {"cxr_memory": ["model.pretrained=false"]}


def rows(schema: Schema, num_rows: int, seed: int) -> dict[str, np.ndarray]:
    """Random rows of a schema; floating columns with label names are 0 or 1."""
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for name, column in schema.columns.items():
        shape = (num_rows, *(FREE_SIZE if size is None else size for size in column.shape))
        if column.dtype == TEXT:
            columns[name] = np.array([f"{name}{seed}-{i}" for i in range(num_rows)], dtype=object)
        elif column.names:
            columns[name] = rng.integers(0, 2, shape).astype(column.dtype)
        else:
            columns[name] = rng.integers(0, 256, shape).astype(column.dtype)
    return columns


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_it_trains_one_step(file, tmp_path):
    task_name = file.parent.name
    overrides = [*OFFLINE[task_name], "training.steps=1", f"storage.path={tmp_path}"]
    config = load_experiment(str(file), overrides).config
    assert config.description, "an experiment says what it is"
    task = task_class(config.task)(config)
    source = ArraySource({"train": rows(task.schema(), 4, 0), "val": rows(task.schema(), 3, 1)})
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
