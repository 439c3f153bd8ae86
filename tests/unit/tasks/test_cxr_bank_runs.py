"""Runs with a bank: cut anywhere they end alike, 1 worker = 2 workers, stages, LR finder, moving average.

The model is checkpointed, updates are accumulated, and one update of each epoch is not finite and left out.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessRaisedException

from random_radiographs import random_radiographs
from voxray.core import collectives
from voxray.tasks.cxr_memory.bank_state import BankState
from voxray.tasks.cxr_memory.config import Config
from voxray.tasks.cxr_memory.data import row_id
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.sources import ArraySource
from voxray.testing.spawn import spawn
from voxray.train import stage_start
from voxray.train.checkpoints import checkpoint
from voxray.train.control import Control
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder
from voxray.train.state import TrainState

CPU = torch.device("cpu")
SPOILT = "0_0007.png"
MEMORY = {"use_memory": True, "bank_size": 16, "update_strategy": "hybrid", "top_k": 3}
MODEL = {"backbone": "test_resnet", "dropout": 0.0, "hidden_dim": 32}
TRAINING = {
    "batch_size": 9,  # 5 and 4 rows on two workers
    "accumulate_grad_batches": 2,
    "epochs": 2,
    "learning_rate": 1e-3,
    "clip_grad_norm": None,
    "on_nonfinite": "skip",
}
UPDATES_PER_EPOCH = 3  # 45 rows: 5 micro-batches
LONG = {**TRAINING, "epochs": 11, "validate_every": {"epochs": 11}}


class Spoiling(CxrMemory):
    """One row makes its update not finite; the first update's gradients are kept."""

    gradients: dict[str, torch.Tensor] | None = None

    def augment(self, batch, key):
        batch = super().augment(batch, key)
        factor_B = torch.tensor([torch.inf if name == SPOILT else 1.0 for name in batch.sample_id])
        return replace(batch, image_BCHW=batch.image_BCHW * factor_B[:, None, None, None])

    def after_step(self, model, outputs):
        super().after_step(model, outputs)
        if self.gradients is None:
            named = model.named_parameters()
            self.gradients = {name: parameter.grad.clone() for name, parameter in named}


def values(**more) -> dict:
    model = {**MODEL, "grad_checkpointing": True}
    kept = {"save_every_n_steps": 1, "keep": 100}
    own = {"model": model, "memory": MEMORY, "training": TRAINING, "checkpoints": kept}
    return {**own, "logging": {"log_every_n_steps": 1}, **more}


def train(folder: str | Path, given: dict, cut_at: int = 0) -> CxrMemory:
    """Train, or go on; raise Cut at a micro-batch."""
    beats: list[int] = []

    def beat() -> None:
        beats.append(1)
        if len(beats) == cut_at:
            raise Cut

    config = Config.model_validate(given)
    run = RunFolder(Path(folder))
    run.path.mkdir(parents=True, exist_ok=True)
    arrays = {"train": random_radiographs(45, 0), "val": random_radiographs(18, 1)}
    source = ArraySource(arrays, collectives.rank(), collectives.world_size())
    task = Spoiling(config, {"image": {"mean": 0.5, "std": 0.29}})
    fit(task, source, config, run, lambda metrics: None, CPU, Control(beat=beat))
    return task


class Cut(Exception):
    pass


def last_hashes(run: RunFolder) -> dict[str, str]:
    last = checkpoint.last(run.checkpoints)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in last.glob("*.safetensors")}


def losses(run: RunFolder) -> list[tuple]:
    kept = [record for record in run.records() if record["kind"] in ("step", "epoch")]
    bank = ("bank/count", "bank/selected", "bank/age_median", "bank/age_max", "bank/labels")
    return [
        (r["kind"], r["step"], r.get("train/loss"), r.get("val/loss"), *(r.get(name) for name in bank))
        for r in kept
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, values(training={**TRAINING, "ema_decay": 0.9}))
    return RunFolder(folder)


# A beat is a micro-batch or a batch of validation; an epoch has 5 and 2.
@pytest.mark.parametrize(
    "cut_at",
    [
        pytest.param(3, id="step 1", marks=pytest.mark.chaos),
        pytest.param(4, id="mid-accumulation"),
        pytest.param(6, id="epoch end", marks=pytest.mark.chaos),
        pytest.param(8, id="next epoch", marks=pytest.mark.chaos),
        pytest.param(12, id="after the second update that was left out"),
    ],
)
def test_a_cut_run_is_the_uninterrupted_one(whole, cut_at, tmp_path):
    given = values(training={**TRAINING, "ema_decay": 0.9})
    with pytest.raises(Cut):
        train(tmp_path, given, cut_at)
    train(tmp_path, given)
    run = RunFolder(tmp_path)
    assert any(record["kind"] == "resume" for record in run.records())
    assert losses(run) == losses(whole)
    assert last_hashes(run) == last_hashes(whole)


@pytest.mark.chaos
def test_a_cut_run_on_two_workers_is_the_uninterrupted_one(tmp_path):
    """Cut between the two micro-batches of an update; the row that spoils it is on one worker alone."""
    given = values()
    spawn(2, train, str(tmp_path / "whole"), given)
    with pytest.raises(ProcessRaisedException, match="Cut"):
        spawn(2, train, str(tmp_path / "cut"), given, 4)
    spawn(2, train, str(tmp_path / "cut"), given)
    runs = [RunFolder(tmp_path / name) for name in ("cut", "whole")]
    assert any(record["kind"] == "resume" for record in runs[0].records())
    assert losses(runs[0]) == losses(runs[1])
    assert last_hashes(runs[0]) == last_hashes(runs[1])


def test_a_bank_that_is_lost_is_seen(whole, tmp_path, monkeypatch):
    """The test above can fail."""
    given = values(training={**TRAINING, "ema_decay": 0.9})
    with pytest.raises(Cut):
        train(tmp_path, given, 9)
    load = TrainState.load_tensors

    def forgetful(self, tensors, state):
        load(self, tensors, state)
        self.model.bank.count.zero_()

    monkeypatch.setattr(TrainState, "load_tensors", forgetful)
    train(tmp_path, given)
    assert last_hashes(RunFolder(tmp_path)) != last_hashes(whole)


def test_an_update_that_is_left_out_leaves_no_row_in_the_bank(whole):
    notes = [record["text"] for record in whole.records() if record["kind"] == "note"]
    assert sum("left out" in text for text in notes) == 2  # once per epoch
    last = load_file(checkpoint.last(whole.checkpoints) / "model.safetensors")
    assert int(last["bank.num_updates"]) == 2 * (UPDATES_PER_EPOCH - 1)
    assert all(value.isfinite().all() for name, value in last.items() if name.startswith("bank."))
    origins = last["bank.origin_M"][: int(last["bank.count"])].tolist()
    spoilt = json.loads(next(whole.path.glob("nonfinite-*.json")).read_text())["sample_ids"]
    assert SPOILT in spoilt
    assert row_id(SPOILT) not in origins
    assert set(origins) <= {row_id(f"0_{i:04d}.png") for i in range(45)}


def test_the_average_is_evaluated_with_the_live_bank(whole):
    """After each save the averaged model holds the bank of the model itself, also in a run that went on."""
    for saved in whole.checkpoints.glob("step-*"):
        model, average = (load_file(saved / f"{name}.safetensors") for name in ("model", "ema"))
        bank = [name for name in model if name.startswith("bank.")]
        assert len(bank) == len(BankState.names())
        assert all(torch.equal(model[name], average[name]) for name in bank)


def test_checkpointing_offers_each_row_once_and_changes_nothing(whole, tmp_path):
    plain = values(training={**TRAINING, "ema_decay": 0.9}, model=MODEL)
    train(tmp_path, plain)
    assert last_hashes(RunFolder(tmp_path)) == last_hashes(whole)
    task = CxrMemory(Config.model_validate(values()), {"image": {"mean": 0.5, "std": 0.29}})
    model = task.build_model().train()
    batch = task.collate({**random_radiographs(6, 0), "valid": np.ones(6, bool), "position": np.arange(6)})
    terms = task.loss(model, batch, task.config.resolved_stages()[0])
    next(iter(terms.values())).sum.backward()
    assert [len(part.row_B) for part in model.bank._offered] == [6]


def on_workers(folder: str, strategy: str) -> None:
    MEMORY["update_strategy"] = strategy
    task = train(f"{folder}/run", values(training=LONG))
    torch.save(task.gradients, f"{folder}/gradients{collectives.rank()}.pt")


@pytest.mark.chaos
@pytest.mark.parametrize("strategy", ["hybrid", "statistical"])
def test_two_workers_are_one(strategy, tmp_path, monkeypatch):
    """Promise 4: 20 steps to 1e-6, first gradients to 1e-5; the banks keep as many rows at each update."""
    monkeypatch.setitem(MEMORY, "update_strategy", strategy)
    spawn(2, on_workers, str(tmp_path), strategy)
    task = train(tmp_path / "alone", values(training=LONG))
    for rank in (0, 1):
        gradients = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        for name, value in task.gradients.items():
            torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-5, msg=name)
    both = [steps(RunFolder(tmp_path / name)) for name in ("run", "alone")]
    assert sum("train/loss" in record for record in both[0]) == 22  # of 33, one of three is left out
    for two, one in zip(*both, strict=True):
        assert two["bank/selected"] == one["bank/selected"]
        assert two.get("train/loss") == pytest.approx(one.get("train/loss"), abs=1e-6)


def steps(run: RunFolder) -> list[dict]:
    return [record for record in run.records() if record["kind"] == "step"]


# --- stages
def test_a_stage_may_begin_or_end_the_memory(tmp_path):
    stages = [
        {"name": "plain", "epochs": 1, "memory": {"use_memory": False}},
        {"name": "memory", "epochs": 1},
        {"name": "slow", "epochs": 1, "memory": {"momentum": 0.9999}, "start_from": "memory/last"},
    ]
    train(tmp_path, values(stages=stages))
    run = RunFolder(tmp_path)
    counts = {record["stage"]: [] for record in run.records() if record["kind"] == "step"}
    for record in steps(run):
        counts[record["stage"]].append(record.get("bank/count"))
    assert counts["plain"] == [None] * UPDATES_PER_EPOCH
    assert counts["memory"][0] < counts["memory"][-1] <= counts["slow"][0]
    ends = [load_file(checkpoint.last(run.checkpoints, stage) / "model.safetensors") for stage in (1, 2)]
    assert int(ends[1]["bank.num_updates"]) == 2 * int(ends[0]["bank.num_updates"])


def test_stages_share_one_bank_size():
    stages = [{"name": "one", "epochs": 1}, {"name": "two", "epochs": 1, "memory": {"bank_size": 32}}]
    with pytest.raises(ValidationError, match=r"bank_size=32.*'one' has 16"):
        Config.model_validate(values(stages=stages))
    without = {**stages[1], "memory": {"bank_size": 32, "use_memory": False}}
    Config.model_validate(values(stages=[stages[0], without]))


def test_the_lr_finder_leaves_the_bank_as_it_was(tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []
    find = stage_start.find_rate

    def around(loop, state, stage):
        copies = [{n: v.clone() for n, v in state.model.state_dict().items()}]
        find(loop, state, stage)
        copies.append({n: v.clone() for n, v in state.model.state_dict().items()})
        seen.extend(copies)

    monkeypatch.setattr(stage_start, "find_rate", around)
    stages = [
        {"name": "first", "steps": 2},
        {"name": "second", "steps": 1, "lr_finder": "valley", "accumulate_grad_batches": 1},
    ]
    order = {**MEMORY, "update_order": "before_retrieve"}
    train(tmp_path, values(stages=stages, memory=order, training=TRAINING))
    assert int(seen[0]["bank.count"]) > 0
    assert all(torch.equal(seen[1][name], value) for name, value in seen[0].items())
