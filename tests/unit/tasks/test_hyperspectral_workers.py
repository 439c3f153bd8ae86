"""One worker equals two, whole or split over them, and one batch equals two micro-batches."""

from pathlib import Path

import numpy as np
import pytest

from hyperspectral_workers import train_share
from voxray.testing.spawn import spawn
from voxray.train.run_folder import RunFolder

TERMS = ("mse", "sam", "variance", "range")


def values(run: RunFolder) -> tuple[np.ndarray, list[float]]:
    steps = [record for record in run.records() if record["kind"] == "step"]
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    terms = [[record[f"train/{name}"] for name in TERMS if f"train/{name}" in record] for record in steps]
    assert len(steps) == 4
    return np.array([[record["train/loss"], *term] for record, term in zip(steps, terms, strict=True)]), [
        record["val/loss"] for record in epochs
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("alone")
    train_share(str(folder), "ddp", 1)
    return RunFolder(folder)


def assert_alike(one: RunFolder, other: RunFolder) -> None:
    for ours, theirs in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_worker_equals_two(strategy: str, alone: RunFolder, tmp_path: Path) -> None:
    spawn(2, train_share, str(tmp_path), strategy, 1)
    assert_alike(RunFolder(tmp_path), alone)
    drawn = [record["path"] for record in RunFolder(tmp_path).records() if record["kind"] == "figure"]
    assert bool(drawn) == (strategy == "fsdp")  # where every worker has to take part
    assert all((tmp_path / path).is_file() for path in drawn)


def test_two_micro_batches_equal_one_batch(alone: RunFolder, tmp_path: Path) -> None:
    train_share(str(tmp_path), "ddp", 2)
    assert_alike(RunFolder(tmp_path), alone)
