"""The loop on lists: gradients against autograd on the whole batch, resume, workers, stopping."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn import functional as F

from voxray.config.errors import RunError
from voxray.core import collectives
from voxray.core.batch import EpochRequest
from voxray.testing.sources import ArraySource
from voxray.testing.spawn import spawn
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

CPU = torch.device("cpu")


def config(**training) -> TinyConfig:
    values = {"batch_size": 16, "epochs": 3, "learning_rate": 0.01, "clip_grad_norm": None, **training}
    return TinyConfig.model_validate({"training": values, "logging": {"log_every_n_steps": 1}})


def source(rank: int = 0, world_size: int = 1) -> ArraySource:
    return ArraySource({"train": tiny_rows(72, 1), "val": tiny_rows(40, 2)}, rank, world_size)


def train(folder: Path, run_config: TinyConfig, report=lambda metrics: None) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    this = source(collectives.rank(), collectives.world_size())
    fit(Tiny(run_config), this, run_config, run, report, CPU)
    return run


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.newest(run.checkpoints, print) / "model.safetensors")


def step_losses(run: RunFolder) -> list[float]:
    return [r["train/loss"] for r in run.records() if r["kind"] == "step"]


def test_it_learns_and_logs_what_it_did(tmp_path):
    reported = []
    run = train(tmp_path, config(epochs=30, learning_rate=0.02), reported.append)
    epochs = [r for r in run.records() if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == list(range(30))
    assert epochs[-1]["val/loss"] < 0.3 * epochs[0]["val/loss"]
    assert [m["epoch"] for m in reported] == list(range(1, 31))
    assert reported[-1]["val/loss"] == pytest.approx(epochs[-1]["val/loss"])
    assert run.is_finished()
    assert run.records()[-1]["best"]["value"] == pytest.approx(min(r["val/loss"] for r in epochs))
    assert [r["rows"] for r in run.records() if r["kind"] == "rank"] == [72 * 30]


def test_first_sgd_step_is_the_gradient_of_the_masked_mean(tmp_path):
    plain = config(optimizer="sgd", epochs=1, steps=1, weight_decay=0.0, warmup_fraction=0.0)
    run = train(tmp_path, plain)
    torch.manual_seed(0)
    task = Tiny(plain)
    from voxray.core.batch import EpochRequest
    from voxray.core.randomness import key

    torch.manual_seed(key(42, "model"))
    model = task.build_model()
    batch = task.collate(next(source().batches(EpochRequest("train", 16, 42))))
    batch = task.augment(batch, key(42, "augment", 0, 0))
    known = ~batch.y_BO.isnan()
    F.mse_loss(model(batch.x_BI)[known], batch.y_BO[known]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            weights(run)[name], parameter.detach() - 0.01 * parameter.grad, rtol=1e-5, atol=1e-7
        )


def test_accumulation_equals_the_large_batch(tmp_path):
    large = train(tmp_path / "large", config(batch_size=24))
    small = train(tmp_path / "small", config(batch_size=8, accumulate_grad_batches=3))
    assert step_losses(small) == pytest.approx(step_losses(large), rel=1e-5)
    for name, value in weights(large).items():
        torch.testing.assert_close(weights(small)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cut_after", [1, 2])
def test_a_resumed_run_is_bit_identical(tmp_path, cut_after):
    stages = [
        {"name": "one", "epochs": 2, "learning_rate": 0.02},
        {"name": "two", "epochs": 1, "optimizer": "sgd"},
    ]
    whole = TinyConfig.model_validate(
        {"training": {"batch_size": 16}, "stages": stages, "model": {"dropout": 0.3, "batch_norm": True}}
    )

    class Cut(Exception):
        pass

    def cut(metrics, seen=[]):  # noqa: B006 - counts the epochs of this run
        seen.append(metrics)
        if len(seen) == cut_after:
            raise Cut

    uninterrupted = train(tmp_path / "whole", whole)
    with pytest.raises(Cut):
        train(tmp_path / "cut", whole, cut)
    resumed = train(tmp_path / "cut", whole)
    assert any(r["kind"] == "resume" for r in resumed.records())
    for name, value in weights(uninterrupted).items():
        assert torch.equal(weights(resumed)[name], value), name

    def pick(run):
        return [(r["stage"], r["epoch"], r["val/loss"]) for r in run.records() if r["kind"] == "epoch"]

    assert pick(resumed) == pick(uninterrupted)


def two_workers(folder: str, batch_norm: bool, strategy: str = "ddp") -> None:
    run_config = TinyConfig.model_validate(
        {
            # Adam turns the rounding noise of a bias before BatchNorm (true gradient 0) into steps of full
            # size
            "training": {"batch_size": 16, "epochs": 4, "learning_rate": 0.01, "optimizer": "sgd"},
            "logging": {"log_every_n_steps": 1},
            "model": {"batch_norm": batch_norm},
            "scale": {"strategy": strategy},
        }
    )
    train(Path(folder), run_config)


def test_split_over_two_workers_it_learns_the_same(tmp_path):
    """FSDP: the same losses, and a checkpoint of whole tensors that one process goes on from."""
    two_workers(str(tmp_path / "one"), False)
    spawn(2, two_workers, str(tmp_path / "two"), False, "fsdp")
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    np.testing.assert_allclose(step_losses(two), step_losses(one), rtol=2e-6, atol=1e-6)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-5, atol=1e-6)
    (two.path / "log.jsonl").unlink()
    longer = TinyConfig.model_validate({"training": {"batch_size": 16, "epochs": 5, "optimizer": "sgd"}})
    assert train(two.path, longer).is_finished()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_one_worker_equals_two(tmp_path, batch_norm):
    two_workers(str(tmp_path / "one"), batch_norm)
    spawn(2, two_workers, str(tmp_path / "two"), batch_norm)
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert len(step_losses(one)) == 20
    np.testing.assert_allclose(step_losses(two), step_losses(one), rtol=2e-6, atol=1e-6)
    assert [r["rows"] for r in two.records() if r["kind"] == "rank"] == [144, 144]
    final = [r["val/loss"] for r in one.records() if r["kind"] == "epoch"]
    np.testing.assert_allclose(
        [r["val/loss"] for r in two.records() if r["kind"] == "epoch"], final, rtol=1e-4
    )


def test_early_stopping_ends_the_stage(tmp_path):
    run = train(
        tmp_path, config(epochs=50, learning_rate=1e-9, early_stopping=True, patience=2, optimizer="sgd")
    )
    epochs = [r for r in run.records() if r["kind"] == "epoch"]
    assert 3 <= len(epochs) < 50
    assert run.is_finished()


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    with pytest.raises(RunError, match=r"lower training\.learning_rate"):
        train(tmp_path, config(optimizer="sgd", learning_rate=1e20, epochs=5))
    for saved in RunFolder(tmp_path).checkpoints.glob("step-*"):
        assert all(torch.isfinite(v).all() for v in load_file(saved / "model.safetensors").values())


@pytest.mark.parametrize(("steps", "epochs"), [(7, 10), (23, 1)])
def test_steps_are_updates_over_as_many_epochs_as_they_take(tmp_path, steps, epochs):
    run = train(tmp_path, config(steps=steps, epochs=epochs))
    records = [r for r in run.records() if r["kind"] == "step"]
    assert [r["step"] for r in records] == list(range(1, steps + 1))
    per_epoch = source().num_batches(EpochRequest("train", config().training.batch_size, 0))
    assert records[-1]["epoch"] == (steps - 1) // per_epoch


def test_draws_need_steps():
    values = {"data": {"sampling": "with_replacement"}}
    with pytest.raises(ValidationError, match=r"stage 'main' needs training\.steps"):
        TinyConfig.model_validate(values)
    TinyConfig.model_validate({**values, "training": {"steps": 9}})


def test_weights_need_draws():
    with pytest.raises(ValidationError, match="weights work with sampling=with_replacement alone"):
        TinyConfig.model_validate({"data": {"weights": "1"}})


def test_bf16_autocast_runs_and_stays_near(tmp_path):
    reference = train(tmp_path / "a", config())
    half = train(tmp_path / "b", config(precision="bf16"))
    assert step_losses(half)[0] == pytest.approx(step_losses(reference)[0], rel=0.05)
    assert not math.isclose(step_losses(half)[0], step_losses(reference)[0], rel_tol=1e-7)
