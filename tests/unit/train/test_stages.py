"""Stages of a run: rows, frozen parts, weights to start from, evaluations between, the LR finder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from voxray.config.errors import InputError
from voxray.testing.sources import ArraySource
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train import stage_start
from voxray.train.checkpoints import checkpoint
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

CPU = torch.device("cpu")


def train(folder: Path, values: dict, rows: dict | None = None) -> RunFolder:
    config = TinyConfig.model_validate(
        {
            **values,
            "logging": {"log_every_n_steps": 1},
            "checkpoints": {"keep": 50, **values.get("checkpoints", {})},
        }
    )
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run.write_config(config, {})
    source = ArraySource(rows or {"train": tiny_rows(64, 1), "val": tiny_rows(40, 2)})
    fit(Tiny(config), source, config, run, lambda metrics: None, CPU)
    return run


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def steps(run: RunFolder) -> list[dict]:
    return [record for record in run.records() if record["kind"] == "step"]


def test_a_stage_trains_what_its_globs_name(tmp_path):
    """Issue: trainable globs; frozen parameters do not move by a bit."""
    stages = [
        {"name": "head", "epochs": 1, "trainable": ["4.*"]},
        {"name": "all", "epochs": 1, "parameters": {"0.*": {"learning_rate": 1e-9}}},
    ]
    run = train(tmp_path, {"stages": stages, "training": {"batch_size": 16, "learning_rate": 0.05}})
    first = weights(checkpoint.last(run.checkpoints, 0))
    torch.manual_seed(stage_start.key(42, "model"))
    fresh = Tiny(TinyConfig()).build_model().state_dict()
    assert torch.equal(first["0.weight"], fresh["0.weight"])
    assert not torch.equal(first["4.weight"], fresh["4.weight"])
    second = weights(checkpoint.last(run.checkpoints, 1))
    torch.testing.assert_close(second["0.weight"], first["0.weight"], atol=1e-6, rtol=0)
    assert not torch.equal(second["4.weight"], first["4.weight"])


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    values = {
        "model": {"batch_norm": True},
        "training": {"batch_size": 16, "epochs": 1, "trainable": ["4.*"]},
    }
    run = train(tmp_path, values)
    saved = weights(checkpoint.last(run.checkpoints))
    assert torch.equal(saved["1.running_mean"], torch.zeros(16))
    assert int(saved["1.num_batches_tracked"]) == 0


def test_a_stage_sees_the_rows_that_its_filter_leaves(tmp_path):
    """Abnormal images first, then all: what `data.filter` of a stage is for."""
    rows = {"train": tiny_rows(64, 1), "val": tiny_rows(40, 2)}
    seen: list[set[str]] = []

    class Watching(Tiny):
        def collate(self, columns):
            seen.append({str(name) for name in columns["sample_id"]})
            return super().collate(columns)

    config = TinyConfig.model_validate(
        {
            "stages": [
                {"name": "few", "epochs": 1, "data": {"limit_samples": 10}},
                {"name": "all", "epochs": 1, "batch_size": 32},
            ],
            "training": {"batch_size": 8},
        }
    )
    run = RunFolder(tmp_path)
    fit(Watching(config), ArraySource(rows), config, run, lambda metrics: None, CPU)
    sizes = [len(names) for names in seen]
    assert sizes == [8, 2, 8, 2, 32, 32, 32, 8]  # train and validation of each stage
    assert run.records()[-1]["kind"] == "end"


def test_the_second_stage_starts_from_the_best_of_the_first(tmp_path):
    """A rate that spoils the weights makes an early evaluation the best one."""
    stages = [
        {"name": "one", "epochs": 5, "learning_rate": 0.2, "schedule": "constant"},
        {"name": "two", "steps": 1, "learning_rate": 1e-12, "optimizer": "sgd", "start_from": "best"},
    ]
    values = {"stages": stages, "training": {"batch_size": 4, "weight_decay": 0.0, "clip_grad_norm": None}}
    run = train(tmp_path, values)
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    losses = [record["val/loss"] for record in epochs if record["stage"] == "one"]
    assert int(np.argmin(losses)) < 4
    best = weights(checkpoint.best(run.checkpoints, 0))
    after = weights(checkpoint.last(run.checkpoints, 1))
    torch.testing.assert_close(after, best, atol=1e-7, rtol=0)
    assert epochs[-1]["val/loss"] == pytest.approx(min(losses), rel=1e-5)


def test_a_run_starts_from_another_runs_weights(tmp_path):
    one = train(tmp_path / "one", {"training": {"batch_size": 16, "epochs": 2}})
    values = {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0, "start_from": str(one.path)}
    two = train(tmp_path / "two", {"training": values})
    best, after = (weights(checkpoint.best(run.checkpoints)) for run in (one, two))
    torch.testing.assert_close(after, best, atol=1e-7, rtol=0)


def test_a_stage_with_other_model_values_builds_another_model_and_says_what_is_new(tmp_path):
    stages = [{"name": "plain", "epochs": 1}, {"name": "norm", "epochs": 1, "model": {"batch_norm": True}}]
    run = train(tmp_path, {"stages": stages, "training": {"batch_size": 16}})
    assert "1.running_mean" not in weights(checkpoint.last(run.checkpoints, 0))
    assert "1.running_mean" in weights(checkpoint.last(run.checkpoints, 1))
    notes = " ".join(record["text"] for record in run.records() if record["kind"] == "note")
    assert "new in the model: 1.weight" in notes
    again = train(tmp_path, {"stages": stages, "training": {"batch_size": 16}})  # it is restored as well
    assert again.is_finished()


def test_evaluation_between_epochs_and_on_a_part(tmp_path):
    values = {"batch_size": 8, "epochs": 2, "validate_every": {"steps": 3}, "validation_samples": 12}
    run = train(tmp_path, {"training": values})
    at = [record["step"] for record in run.records() if record["kind"] == "validation"]
    assert at == [3, 6, 9, 12, 15]
    whole = train(tmp_path / "whole", {"training": {**values, "validation_samples": None}})
    first = [
        next(r for r in each.records() if r["kind"] == "validation")["val/loss"] for each in (run, whole)
    ]
    assert first[0] != pytest.approx(first[1], rel=1e-3)
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    assert ["val/loss" in record for record in epochs] == [False, True]  # the stage's end is evaluated


def test_overfit_batches_learns_few_rows_by_heart(tmp_path):
    values = {
        "overfit_batches": 1,
        "batch_size": 8,
        "epochs": 150,
        "learning_rate": 0.02,
        "weight_decay": 0.0,
    }
    run = train(tmp_path, {"training": values, "model": {"hidden_dim": 64}})
    last = [record for record in run.records() if record["kind"] == "epoch"][-1]
    assert last["step"] == 150
    assert last["val/loss"] < 1e-3  # evaluated on the rows it learns


def test_the_lr_finder_leaves_everything_as_it_was(tmp_path, monkeypatch):
    """Model, buffers and optimiser after the finder are bit-equal to those before it."""
    seen: dict[str, dict[str, torch.Tensor]] = {}
    find = stage_start.find_rate

    def around(loop, state, stage):
        seen["before"] = {name: value.clone() for name, value in state.model.state_dict().items()}
        find(loop, state, stage)
        seen["after"] = {name: value.clone() for name, value in state.model.state_dict().items()}
        assert not state.optimizer.state_dict()["state"]
        assert (state.step, state.stage_step) == (0, 0)

    monkeypatch.setattr(stage_start, "find_rate", around)
    values = {
        "batch_size": 8,
        "epochs": 2,
        "lr_finder": "valley",
        "learning_rate": 1e-4,
        "clip_grad_norm": None,
    }
    run = train(tmp_path, {"training": values, "model": {"batch_norm": True, "dropout": 0.2}})
    for name, value in seen["before"].items():
        assert torch.equal(seen["after"][name], value), name
    record = next(r for r in run.records() if r["kind"] == "lr_finder")
    assert 1e-6 < record["rate"] < 5
    rates = [r["learning_rate"] for r in steps(run)]
    assert max(rates) == pytest.approx(record["rate"], rel=1e-6)
    assert (run.path / "figures" / "lr_finder_main.png").read_bytes()[:4] == b"\x89PNG"


def test_the_lr_finder_copies_no_frozen_parameter(tmp_path, monkeypatch):
    """A frozen language model fills the memory once; what is trained, and buffers, are copied."""
    cloned: set[int] = set()
    find, clone = stage_start.find_rate, torch.Tensor.clone

    def noted(tensor, *args, **options):
        cloned.add(tensor.data_ptr())
        return clone(tensor, *args, **options)

    def around(loop, state, stage):
        found = {True: [], False: []}
        for value in state.model.parameters():
            found[value.requires_grad].append(value.data_ptr())
        cloned.clear()
        find(loop, state, stage)
        assert cloned.issuperset([*found[True], *(value.data_ptr() for value in state.model.buffers())])
        assert found[False]
        assert cloned.isdisjoint(found[False])

    monkeypatch.setattr(stage_start, "find_rate", around)
    monkeypatch.setattr(torch.Tensor, "clone", noted)
    values = {"batch_size": 8, "epochs": 1, "lr_finder": "valley", "parameters": {"0.*": {"freeze": True}}}
    train(tmp_path, {"training": values, "model": {"batch_norm": True}})


def test_a_found_rate_survives_a_resume(tmp_path):
    values = {"training": {"batch_size": 8, "epochs": 3, "lr_finder": "valley"}}

    class Cut(Exception):
        pass

    config = TinyConfig.model_validate({**values, "logging": {"log_every_n_steps": 1}})
    run = RunFolder(tmp_path)

    def cut(metrics):
        raise Cut

    source = ArraySource({"train": tiny_rows(64, 1), "val": tiny_rows(40, 2)})
    with pytest.raises(Cut):
        fit(Tiny(config), source, config, run, cut, CPU)
    fit(Tiny(config), source, config, run, lambda metrics: None, CPU)
    whole = train(tmp_path / "whole", values)
    assert [r["learning_rate"] for r in steps(run)] == [r["learning_rate"] for r in steps(whole)]
    assert sum(r["kind"] == "lr_finder" for r in run.records()) == 1


def test_a_glob_that_names_nothing_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="backbone"):
        train(tmp_path, {"training": {"trainable": ["backbone.*"]}})


def test_without_save_last_a_finished_run_keeps_its_best_alone(tmp_path):
    values = {"batch_size": 4, "epochs": 5, "learning_rate": 0.2, "schedule": "constant"}
    run = train(tmp_path, {"training": values, "checkpoints": {"save_last": False}})
    best = checkpoint.best(run.checkpoints)
    assert [path.name for path in run.checkpoints.glob("step-*")] == [best.name]
    assert checkpoint.problem(best) is None
    assert run.is_finished()
