"""A run that could not be judged is refused before it trains: too few pictures for a gallery."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmri_rows import fmri_rows, fmri_task
from voxray.config.errors import InputError
from voxray.core.experiment import default_config
from voxray.data.manifest import load_manifest
from voxray.data.source import open_source
from voxray.tasks.fmri_clip.config import Config
from voxray.tasks.fmri_clip.task import FmriClip
from voxray.testing.datasets import write_dataset
from voxray.train.dry_run.plan import plan
from voxray.train.evaluated_rows import check_evaluated
from voxray.train.worker import train_here

NUM_STIMULI = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures twice in each split, in shards of 25 rows; sessions 0 and 1 saw 15 each."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for seed, split in enumerate(("train", "val")):
        rows = fmri_rows(2 * NUM_STIMULI, seed, num_stimuli=NUM_STIMULI)
        splits[split] = rows | {"session": (rows["nsd_id"] >= NUM_STIMULI // 2).astype(np.int32)}
    schema = fmri_task({}).dataset_schema
    return write_dataset(tmp_path_factory.mktemp("rows") / "ds", schema, splits, rows_per_shard=25)


def values(dataset: Path, **changed: Any) -> dict[str, Any]:
    fixed = {"data.path": str(dataset), "model.architecture": "mlp", "model.hidden_dims": [8]}
    return fixed | {"training.batch_size": 20} | changed


def check(dataset: Path, **changed: Any) -> None:
    config = default_config("fmri_clip", values(dataset, **changed), "test").config
    assert isinstance(config, Config)
    manifest = load_manifest(dataset)
    task = FmriClip(config, manifest.statistics, manifest.schema)
    check_evaluated(task, open_source(dataset, config.data), config.resolved_stages())


@pytest.mark.parametrize(
    "changed",
    [
        {"objective.gallery": 30},
        {"objective.gallery": "all"},
        {"model.architecture": "clip2fmri"},
        {"objective.gallery": 15, "data.filter": "session == 1"},
        {"data.limit_samples": 20},
        {"training.overfit_batches": 1},
        {"data.train_filter": "session == 1", "objective.gallery": 30},
    ],
)
def test_enough_pictures_are_let_through(dataset: Path, changed: dict[str, Any]) -> None:
    check(dataset, **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, r"gallery=300, but split 'val' has 30 stimuli; set objective\.gallery=30 or less, or .*=all"),
        ({"objective.gallery": 31}, "gallery=31, but split 'val' has 30"),
        ({"objective.gallery": 16, "data.filter": "session == 1"}, "gallery=16, but split 'val' has 15"),
        ({"objective.gallery": 30, "training.validation_samples": 10}, "gallery=30, but split 'val' has"),
    ],
)
def test_too_few_pictures_are_refused_with_the_mend(
    dataset: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check(dataset, **changed)


def test_a_dry_run_and_a_worker_refuse_before_they_train(dataset: Path, tmp_path: Path) -> None:
    changed = {"storage.path": str(tmp_path)}
    config = default_config("fmri_clip", values(dataset, **changed), "test").config
    with pytest.raises(InputError, match=r"objective\.gallery=30 or less"):
        plan(config)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"objective\.gallery=30 or less"):
        train_here(config, tmp_path / "run", lambda metrics: None)
    assert not (tmp_path / "run" / "log.jsonl").exists()
