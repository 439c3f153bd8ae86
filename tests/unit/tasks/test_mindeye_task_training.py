"""MindEye trains the same on one worker and two, in one batch or two, and from any cut on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindeye_rows import SMALL, SMALL_LOW_LEVEL, mindeye_task
from mindeye_workers import train_share
from voxray.testing.spawn import spawn
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.weights import load_into
from voxray.train.control import Control, Stopped
from voxray.train.run_folder import RunFolder

TERMS = ("loss", "mse", "nce")


def values(folder: Path) -> tuple[np.ndarray, list[float]]:
    """Return each update's loss and terms, and each epoch's validation loss."""
    records = RunFolder(folder).records()
    steps = {record["step"]: record for record in records if record["kind"] == "step"}
    epochs = [record["val/loss"] for record in records if record["kind"] == "epoch"]
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    return np.array([[record[f"train/{name}"] for name in TERMS] for record in steps.values()]), epochs


def assert_alike(one: Path, other: Path, rtol: float = 1e-5) -> None:
    for ours, theirs in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train_share(str(folder))
    return folder


def test_one_worker_equals_two(alone: Path, tmp_path: Path) -> None:
    spawn(2, train_share, str(tmp_path))
    assert_alike(tmp_path, alone)


@pytest.mark.parametrize(
    "model",
    [{"low_level": SMALL_LOW_LEVEL}, {"subjects": ["subj01", "subj02"], "subject_dim": 16}],
    ids=["low level", "two subjects"],
)
def test_one_worker_equals_two_with_further_parts(model: dict[str, Any], tmp_path: Path) -> None:
    train_share(str(tmp_path / "alone"), mixco_fraction=0.0, model=model)
    spawn(2, train_share, str(tmp_path / "both"), 1, 0.0, None, "", model)
    assert_alike(tmp_path / "both", tmp_path / "alone")


def test_two_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    """Without mixing, whose partners are those of a micro-batch."""
    train_share(str(tmp_path / "one"), 1, 0.0)
    train_share(str(tmp_path / "two"), 2, 0.0)
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("way", ["joint, from scratch", "joint, from a run", "frozen, from a run"])
@pytest.mark.parametrize("updates", [2, 4])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(
    way: str, updates: int, alone: Path, tmp_path: Path
) -> None:
    """Cut in the epoch of mixing, and in the one after it."""
    asked: list[bool] = []

    def is_enough() -> bool:
        asked.append(True)
        return len(asked) == updates

    joint, _, source = way.partition(", ")
    given = str(checkpoint.last(RunFolder(alone).checkpoints)) if source == "from a run" else ""
    start = {"voxel2clip": given, "joint": joint == "joint"}
    train_share(str(tmp_path / "whole"), **start)
    with pytest.raises(Stopped):
        train_share(str(tmp_path / "cut"), control=Control(should_stop=is_enough), **start)
    train_share(str(tmp_path / "cut"), **start)
    losses = [
        [record["train/loss"] for record in RunFolder(run).records() if record["kind"] == "step"]
        for run in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_log_tells_phase_temperature_and_how_the_terms_compare(alone: Path) -> None:
    steps = [record for record in RunFolder(alone).records() if record["kind"] == "step"]
    assert [record["mixco"] for record in steps] == [1, 1, 1, 0, 0, 0]
    assert [record["tau"] for record in steps] == pytest.approx([0.05] * 3 + [0.004] * 3)
    assert [record["alpha"] for record in steps] == pytest.approx([0.01] * 3 + [0.05] * 3)
    for record in steps:
        assert record["mse_to_nce"] == pytest.approx(record["train/mse"] / record["train/nce"], rel=1e-4)


def test_a_frozen_voxel2clip_stays_that_of_its_run(alone: Path, tmp_path: Path) -> None:
    """The weights come from the run that trained it; the prior alone is trained, and retrieval stays."""
    given = checkpoint.last(RunFolder(alone).checkpoints)
    assert given is not None
    train_share(str(tmp_path), voxel2clip=str(given))
    ours, theirs = weights(tmp_path), weights(alone)
    parts = {name.split(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert parts == {"prior"}
    retrieval = [
        record["val/image_r1_of_10"] for record in RunFolder(tmp_path).records() if "val/loss" in record
    ]
    own = [record["val/image_r1_of_10"] for record in RunFolder(alone).records() if "val/loss" in record]
    assert retrieval == [own[-1]] * 2


def test_further_parts_are_taken_from_a_run(tmp_path: Path) -> None:
    """From the weights of a whole model, and from those of the part alone."""
    task = mindeye_task({"model": {**SMALL, "low_level": SMALL_LOW_LEVEL}})
    torch.manual_seed(0)
    given, other = task.build_model(), task.build_model()
    module = other.get_submodule("low_level")
    load_into(module, task.part_weights("low_level", module, given.state_dict(), print), print)
    for name, value in given.get_submodule("low_level").state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)
    alone = given.get_submodule("low_level").state_dict()
    assert task.part_weights("low_level", module, alone, print).keys() == alone.keys()


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.last(RunFolder(run).checkpoints)
    assert found is not None
    return checkpoint.load_weights(found)
