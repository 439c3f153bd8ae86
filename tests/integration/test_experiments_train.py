"""Every experiment file loads, is listed and trains one step, on a few rows of its task's shape."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from random_rows import OFFLINE, STATISTICS, random_rows, resolved, task_schema
from voxray.core.experiment import load_experiment
from voxray.core.registry import task_class
from voxray.data.source import open_source
from voxray.testing.datasets import write_dataset
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/*.yaml"))
FREE_SIZE = 64  # stands for a size that only raw files tell, e.g. an image's side
# Of what costs most, a small one: that the large ones can be built is the tasks' own tests' business.
LIGHT = {
    "cxr_memory": ["model.backbone=test_efficientnet"],
    "fmri_clip": ["model.latent_dim=32"],
    "mindeye": ["model.voxel2clip.hidden_dim=32", "model.prior.depth=1"],
    "hyperspectral": [
        *("model.patch_size=[20, 5]", "model.grad_checkpointing=false"),
        *("model.embed_dim=48", "model.num_heads=4", "model.depth=1"),
        *("model.decoder_dim=48", "model.decoder_heads=4", "model.decoder_depth=1"),
    ],
    "brain_text": ["model.n_units=16", "model.llm.dtype=float32", "training.compile=off"],
}
NUM_VAL = {"fmri_clip": 300, "mindeye": 300}  # a whole gallery
# What an experiment is given on the command line, here without a run to read it from.
GIVEN = {"adapter_vitl14": ["model.encoder={architecture: mlp, target: final}"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@cache
def dataset(task_name: str, folder: Path) -> Path:
    """A dataset of a few random rows of the task's shape, with the index that filters go by."""
    schema = task_schema(task_name, FREE_SIZE)
    splits = {"train": random_rows(schema, 4, 0), "val": random_rows(schema, NUM_VAL.get(task_name, 3), 1)}
    return write_dataset(folder / task_name, schema, splits, 4)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_it_trains_one_step(file, folder, tmp_path):
    task_name = file.parent.name
    fixed = [f"data.path={dataset(task_name, folder)}", f"storage.path={tmp_path}"]
    fixed += ["training.steps=1", "training.lr_finder=off"]  # a finder makes a hundred updates
    fixed += GIVEN.get(file.stem, [])
    config = load_experiment(str(file), [*OFFLINE[task_name], *LIGHT[task_name], *fixed]).config
    assert config.description, "an experiment says what it is"
    made = task_class(config.task)(config)
    task = type(made)(config, STATISTICS.get(task_name), resolved(made.schema(), FREE_SIZE))
    source = open_source(config.data.path, config.data, stages=task.read_stages())
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
