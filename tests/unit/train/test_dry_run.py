"""What `--dry-run` counts and refuses, against counts by hand and what a run then really does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from voxray.config.errors import InputError, RunError
from voxray.core.experiment import default_config
from voxray.core.run_config import RunConfig
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.dry_run import estimate, first_batch
from voxray.train.dry_run.estimate import checkpoint_bytes, memory_of, num_checkpoints
from voxray.train.dry_run.plan import Plan, check_monitor, check_start_from, needs_ray, plan
from voxray.train.optimisation.parameters import choose_trainable
from voxray.train.run_folder import run_folder
from voxray.train.worker import train_here

TASK = "voxray.testing.tiny:Tiny"
ROWS = {"train": tiny_rows(200, 1), "val": tiny_rows(60, 2)}
NUM_WEIGHTS = 6 * 16 + 16 + 16 * 2 + 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), ROWS, 70)


@pytest.fixture
def config(dataset: Path, tmp_path: Path):
    def make(**values: Any) -> RunConfig:
        own = {"data.path": str(dataset), "storage.path": str(tmp_path / "runs")}
        named = {key.replace("__", "."): value for key, value in values.items()}
        return default_config(TASK, own | named, "the test").config

    return make


def value_of(size: Plan, what: str) -> Any:
    (row,) = (row for row in size.rows() if row["what"] == what)
    return row["value"]


def test_it_counts_rows_updates_and_parameters_by_stage(config, tmp_path: Path) -> None:
    stages = [
        {"name": "head", "epochs": 2, "batch_size": 30, "trainable": ["4.*"]},
        {"name": "all", "steps": 7, "accumulate_grad_batches": 2, "data": {"limit_samples": 50}},
    ]
    size = plan(config(stages=stages, model__batch_norm=True), print)
    head, every = size.stages
    # 200 rows in batches of 30 are 7 a epoch; BatchNorm adds a scale and a shift of 16.
    assert (head.num_train_rows, head.num_updates, head.rows_per_update) == (200, 2 * 7, 30)
    assert (every.num_train_rows, every.num_updates, every.rows_per_update) == (50, 7, 2 * 32)
    # The layers: 0 Linear, 1 BatchNorm, 4 Linear of 16 → 2.
    assert (head.num_trainable, head.num_frozen) == (16 * 2 + 2, NUM_WEIGHTS + 32 - 34)
    assert (every.num_trainable, every.num_frozen) == (NUM_WEIGHTS + 32, 0)
    assert (size.num_train_rows, size.num_val_rows) == (200, 50)  # the model of the last stage is evaluated
    assert size.num_updates == 21
    assert not (tmp_path / "runs").exists()


def test_it_counts_memory_and_the_size_of_checkpoints(config) -> None:
    stage = config(training__ema_decay=0.9, model__batch_norm=True).resolved_stages()[0]
    model = Tiny(stage.config).build_model()
    weights = 4 * (NUM_WEIGHTS + 32)
    buffers = 4 * 32 + 8  # running mean and variance, and an int64 count
    memory = memory_of(model, stage)
    assert (memory.weights, memory.gradients, memory.moments) == (weights + buffers, weights, 2 * weights)
    assert memory.average == weights + buffers
    assert checkpoint_bytes(model, stage) == 4 * weights + 2 * buffers
    frozen = config(training__trainable=["4.*"], training__optimizer="sgd").resolved_stages()[0]
    model = Tiny(stage.config).build_model()
    choose_trainable(model, frozen.training)
    memory = memory_of(model, frozen)
    assert (memory.gradients, memory.moments, memory.average) == (4 * 34, 4 * 34, 0)
    split = config(scale__strategy="fsdp", scale__num_workers=2).resolved_stages()[0]
    assert memory_of(Tiny(split.config).build_model(), split).moments == 2 * 4 * NUM_WEIGHTS // 2


def test_a_real_run_takes_what_was_estimated_and_starts_with_the_same_loss(config) -> None:
    values = {
        "training.steps": 3, "training.ema_decay": 0.9, "logging.log_every_n_steps": 1,
        "model.hidden_dim": 5000, "model.dropout": 0.2,
    }  # fmt: skip
    run_config = config(**values)
    size = plan(run_config, print)
    run = run_folder(run_config)
    assert not run.path.exists()
    train_here(run_config, run.path, lambda metrics: None)
    losses = [record["train/loss"] for record in run.records() if record["kind"] == "step"]
    assert size.tried.startswith(f"loss {losses[0]:.4g} of 32 rows")
    newest = checkpoint.newest(run.checkpoints, print)
    assert newest is not None
    written = sum(file.stat().st_size for file in newest.iterdir())
    assert size.stages[0].checkpoint_bytes == pytest.approx(written, rel=0.05)
    there = [path for path in run.checkpoints.iterdir() if path.is_dir()]
    assert len(there) <= size.num_checkpoints


def test_num_checkpoints_counts_the_kept_the_best_and_the_one_being_written(config) -> None:
    assert num_checkpoints(config()) == 2 + 1 + 1
    assert num_checkpoints(config(checkpoints__keep=5, checkpoints__save_best=False)) == 6
    assert num_checkpoints(config(stages=[{}, {}])) == 2 + 2 + 1 + 1


def test_ray_is_needed_for_data_that_is_made_or_streamed(config) -> None:
    assert not needs_ray(config())
    assert needs_ray(config(data__transport="stream"))
    assert needs_ray(config(data__path="synth:tiny"))  # this task never made any


def test_a_full_disk_is_an_input_error_that_names_both_sizes(config, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "free_disk", lambda folder: 1000)
    with pytest.raises(
        InputError, match=r"checkpoints take 0\.0 MB \(4 of 0\.0 MB\).*lower checkpoints\.keep"
    ):
        plan(config(), print)


def test_without_memory_no_batch_is_run(config, monkeypatch) -> None:
    monkeypatch.setattr("voxray.train.dry_run.plan.free_memory", lambda device: 1000)
    assert plan(config(), print).tried.startswith("not run: it needs 0.0 MB")


def test_a_batch_that_would_take_long_is_run_in_part(config, monkeypatch) -> None:
    monkeypatch.setattr(first_batch, "AT_MOST_S", 0.0)
    assert re.search(r"of 4 rows; all 32 would take about", plan(config(), print).tried)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_batch_is_run_as_the_run_would(config, precision: str) -> None:
    tried = plan(config(training__precision=precision), print).tried
    assert re.match(r"loss \d\.\d+ of 32 rows in", tried), tried


def test_a_loss_that_is_not_finite_fails(config, monkeypatch) -> None:
    monkeypatch.setattr(
        Tiny,
        "augment",
        lambda self, batch, key: batch.mapped(lambda t: t * float("nan") if t.ndim > 1 else t),
    )
    monkeypatch.setattr("voxray.testing.tiny._squared_error", lambda pred_BO, y_BO: pred_BO.sum())
    with pytest.raises(RunError, match="the loss of the first batch is nan: mse nan"):
        plan(config(), print)


def test_a_monitor_that_nobody_reports_is_refused_with_what_there_is(config) -> None:
    check_monitor(config())
    with pytest.raises(
        InputError, match=r"nobody reports 'val/los'; did you mean 'val/loss'\? there is train/loss, val"
    ):
        check_monitor(config(training__monitor="val_los"))
    stages = [{}, {"name": "end", "monitor": "val/auroc"}]
    with pytest.raises(InputError, match=r"'val/auroc' \(stage 'end'\)"):
        plan(config(stages=stages), print)


def test_a_glob_that_matches_nothing_and_a_stage_without_rows_are_refused(config) -> None:
    with pytest.raises(InputError, match=r"training\.trainable: 'backbone\.\*' matches no parameter"):
        plan(config(stages=[{"trainable": ["backbone.*"]}]), print)
    with pytest.raises(InputError, match="stage 'none' has no training rows"):
        plan(config(stages=[{"name": "none", "data": {"filter": "group == 'x'"}}]), print)


def test_where_a_stage_starts_is_checked_before_the_run(config, tmp_path: Path) -> None:
    check_start_from(config(stages=[{"name": "a"}, {"start_from": "best"}, {"start_from": "a/last"}]))
    for reference in ("nowhere", "b/best", str(tmp_path / "x.pt")):
        with pytest.raises(InputError, match=f"start_from={reference}"):
            plan(config(stages=[{"name": "a"}, {"start_from": reference}]), print)
    weights = tmp_path / "w.pt"
    torch.save({"other": torch.zeros(3)}, weights)
    with pytest.raises(InputError, match="no weight fits the model"):
        plan(config(training__start_from=str(weights)), print)
    torch.save({"model_state_dict": Tiny(TinyConfig()).build_model().state_dict()}, weights)
    assert plan(config(training__start_from=str(weights)), print).tried.startswith("loss ")
