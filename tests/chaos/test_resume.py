"""Resume equals never having stopped: cuts at every kind of place, one and two workers; a loss is seen.

The task has dropout, BatchNorm, augmentation, accumulation, a moving average and bf16 autocast; a run has
two stages with different optimisers. `pytest -m chaos tests/chaos/test_resume.py`
"""

import hashlib
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from voxray.core import collectives
from voxray.testing.sources import ArraySource
from voxray.testing.spawn import spawn
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.control import Control
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder
from voxray.train.state import TrainState

pytestmark = pytest.mark.chaos

VALUES = {
    "model": {"dropout": 0.3, "batch_norm": True},
    "training": {
        "batch_size": 8,
        "accumulate_grad_batches": 2,
        "precision": "bf16",
        "ema_decay": 0.9,
        "learning_rate": 0.01,
    },
    "stages": [{"name": "one", "epochs": 2}, {"name": "two", "epochs": 2, "optimizer": "sgd"}],
    "checkpoints": {"save_every_n_steps": 1, "keep": 100},
    "logging": {"log_every_n_steps": 1},
}
# 72 rows: 9 micro-batches and 5 updates per epoch; 40 rows of validation: 5 batches. `beat` counts both.
MICRO_BATCHES, VALIDATION_BATCHES = 9, 5
EPOCH = MICRO_BATCHES + VALIDATION_BATCHES
CUTS = {
    "step 1": 3,  # in the first micro-batch after the first update
    "mid-epoch": EPOCH + 5,
    "epoch end": EPOCH + MICRO_BATCHES + 2,  # in the evaluation
    "mid-accumulation": EPOCH + 4,
    "stage boundary": 2 * EPOCH + 1,  # the first micro-batch of the second stage
}


class Cut(Exception):
    pass


def train(folder: str, cut_at: int = 0) -> None:
    """Train, or go on; raise Cut at a beat."""
    beats = []

    def beat() -> None:
        beats.append(1)
        if len(beats) == cut_at:
            raise Cut

    config = TinyConfig.model_validate(VALUES)
    run = RunFolder(Path(folder))
    run.path.mkdir(parents=True, exist_ok=True)
    rows = {"train": tiny_rows(72, 1), "val": tiny_rows(40, 2)}
    source = ArraySource(rows, collectives.rank(), collectives.world_size())
    fit(Tiny(config), source, config, run, lambda metrics: None, torch.device("cpu"), Control(beat=beat))


def on(num_workers: int, folder: Path, cut_at: int = 0) -> RunFolder:
    if num_workers == 1:
        train(str(folder), cut_at)
    else:
        spawn(num_workers, train, str(folder), cut_at)
    return RunFolder(folder)


def hashes(run: RunFolder) -> dict[str, str]:
    """sha256 of everything but the config in the last checkpoint of each stage."""
    lasts = [checkpoint.last(run.checkpoints, stage) for stage in (0, 1)]
    files = [file for last in lasts for file in last.glob("*.safetensors")]
    return {
        f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def losses(run: RunFolder) -> list[tuple]:
    kept = [record for record in run.records() if record["kind"] in ("step", "epoch")]
    return [(r["kind"], r["stage"], r["step"], r["train/loss"], r.get("val/loss")) for r in kept]


@pytest.fixture(scope="module", params=[1, 2])
def uninterrupted(request, tmp_path_factory):
    return request.param, on(request.param, tmp_path_factory.mktemp(f"whole{request.param}"))


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_run_is_the_uninterrupted_one(uninterrupted, cut, tmp_path):
    num_workers, whole = uninterrupted
    with pytest.raises((Cut, ProcessRaisedException), match=None if num_workers == 1 else "Cut"):
        on(num_workers, tmp_path, CUTS[cut])
    run = on(num_workers, tmp_path)
    assert any(record["kind"] == "resume" for record in run.records())
    assert losses(run) == losses(whole)
    assert len([entry for entry in losses(run) if entry[0] == "step"]) == 20
    assert {f"step-00000020/{name}.safetensors" for name in ("model", "ema", "state")} <= hashes(run).keys()
    assert hashes(run) == hashes(whole)


def forget(name):
    """Drop one part of what is restored."""

    def buffer(state: TrainState) -> None:
        state.model.get_buffer("1.running_mean").zero_()

    def moment(state: TrainState) -> None:
        parameter = state.optimizer.param_groups[0]["params"][0]
        state.optimizer.state[parameter]["exp_avg"].zero_()

    def random_key(state: TrainState) -> None:
        state.step += 1  # the key of dropout's masks

    def average(state: TrainState) -> None:
        state.ema.load_state_dict(state.model.state_dict())

    def place_in_the_data(state: TrainState) -> None:
        state.epoch_batch = 0

    return {
        "a buffer": buffer,
        "a moment": moment,
        "a random key": random_key,
        "the average": average,
        "the place in the data": place_in_the_data,
    }[name]


@pytest.mark.parametrize(
    "lost", ["a buffer", "a moment", "a random key", "the average", "the place in the data"]
)
def test_what_is_lost_from_the_state_is_seen(lost, tmp_path, monkeypatch):
    """The test above can fail: it does when one part of the state is dropped."""
    whole = on(1, tmp_path / "whole")
    with pytest.raises(Cut):
        on(1, tmp_path / "cut", CUTS["mid-epoch"])
    load = TrainState.load_tensors

    def forgetful(self, tensors, state):
        load(self, tensors, state)
        forget(lost)(self)

    monkeypatch.setattr(TrainState, "load_tensors", forgetful)
    run = on(1, tmp_path / "cut")
    assert hashes(run) != hashes(whole)
