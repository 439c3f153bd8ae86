"""What goes wrong inside a training process: NaN, repeated errors, memory, operations that are not exact."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from voxray.config.errors import RunError
from voxray.core.losses import LossTerm
from voxray.testing.sources import ArraySource
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train import faults
from voxray.train.checkpoints import checkpoint
from voxray.train.control import Control, Stopped
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder

CPU = torch.device("cpu")


def rows(bad: str = "") -> dict[str, dict[str, np.ndarray]]:
    """64 rows; one of them has an infinite input."""
    train = tiny_rows(64, 1)
    if bad:
        train["x"][list(train["sample_id"]).index(bad), 0] = np.inf
    return {"train": train, "val": tiny_rows(40, 2)}


def run_with(folder: Path, values: dict, data: dict, task=Tiny, control: Control | None = None) -> RunFolder:
    config = TinyConfig.model_validate(
        {
            **values,
            "training": {"batch_size": 8, "epochs": 2, **values.get("training", {})},
            "logging": {"log_every_n_steps": 1},
        }
    )
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fit(task(config), ArraySource(data), config, run, lambda metrics: None, CPU, control)
    return run


def last_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.last(run.checkpoints) / "model.safetensors")


def test_stop_names_the_update_and_keeps_its_sample_ids(tmp_path):
    with pytest.raises(RunError, match=r"not finite at update \d+ .*nonfinite-step-\d+\.json"):
        run_with(tmp_path, {}, rows("row00020"))
    file = next(tmp_path.glob("nonfinite-step-*.json"))
    assert "row00020" in json.loads(file.read_text())["sample_ids"]
    assert len(json.loads(file.read_text())["sample_ids"]) == 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_skip_leaves_the_update_out_and_restores_the_buffers(tmp_path, precision):
    """The row is met once per epoch; BatchNorm's statistics stay finite."""
    values = {"training": {"on_nonfinite": "skip", "precision": precision}, "model": {"batch_norm": True}}
    run = run_with(tmp_path, values, rows("row00020"))
    assert run.is_finished()
    assert all(value.isfinite().all() for value in last_weights(run).values())
    assert len(list(tmp_path.glob("nonfinite-step-*.json"))) == 2
    assert int(last_weights(run)["1.num_batches_tracked"]) == 14  # 16 updates, 2 left out
    assert [record["step"] for record in run.records() if record["kind"] == "step"] == list(range(1, 17))


def test_rollback_goes_back_and_ends_as_if_the_update_had_been_skipped(tmp_path):
    values = {"model": {"batch_norm": True}, "checkpoints": {"save_every_n_steps": 3}}
    back = run_with(tmp_path / "a", {**values, "training": {"on_nonfinite": "rollback"}}, rows("row00020"))
    skip = run_with(tmp_path / "b", {**values, "training": {"on_nonfinite": "skip"}}, rows("row00020"))
    assert back.is_finished()
    assert sum(record["kind"] == "resume" for record in back.records()) >= 1
    for name, value in last_weights(skip).items():
        assert torch.equal(last_weights(back)[name], value), name


class Failing(Tiny):
    """Fails in the third epoch's first update, whenever it comes there."""

    def augment(self, batch, key):
        if int(batch.position_B[0]) == 0:
            Failing.calls += 1
            if Failing.calls > 2:
                raise ZeroDivisionError("by zero")
        return super().augment(batch, key)

    calls = 0


def test_the_same_error_twice_at_the_same_update_gives_up(tmp_path):
    Failing.calls = 0
    values = {"training": {"epochs": 5}}
    with pytest.raises(ZeroDivisionError):
        run_with(tmp_path, values, rows(), Failing)
    with pytest.raises(
        RunError, match=r"the same error came twice at update 16, .*ZeroDivisionError: by zero"
    ):
        run_with(tmp_path, values, rows(), Failing)


def test_an_error_at_another_update_is_no_repetition(tmp_path):
    Failing.calls = 0
    with pytest.raises(ZeroDivisionError):
        run_with(tmp_path, {"training": {"epochs": 5}}, rows(), Failing)
    Failing.calls = 1
    with pytest.raises(ZeroDivisionError):
        run_with(tmp_path, {"training": {"epochs": 5}}, rows(), Failing)


class Greedy(Tiny):
    """Runs out of memory with more than two rows at a time."""

    def loss(self, model, batch, stage):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(model, batch, stage)


def test_out_of_memory_cuts_micro_batches_until_they_fit_and_changes_nothing_else(tmp_path):
    """DESIGN.md section 5: half the micro-batch, twice the accumulation; the gradient stays."""
    values = {"training": {"clip_grad_norm": None}}
    for _ in range(2):
        with pytest.raises(faults.OutOfMemoryError, match="cut into"):
            run_with(tmp_path / "a", values, rows(), Greedy)
    small = run_with(tmp_path / "a", values, rows(), Greedy)
    assert small.micro_batch_parts == 4
    whole = run_with(tmp_path / "b", values, rows())
    losses = [[r["train/loss"] for r in run.records() if r["kind"] == "step"] for run in (small, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


class Bottomless(Tiny):
    def loss(self, model, batch, stage):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_one_row_that_does_not_fit_ends_the_run(tmp_path):
    for _ in range(3):
        with pytest.raises(faults.OutOfMemoryError):
            run_with(tmp_path, {}, rows(), Bottomless)
    with pytest.raises(RunError, match="does not hold one row at a time"):
        run_with(tmp_path, {}, rows(), Bottomless)


def test_deterministic_names_the_operation_that_cannot_comply(tmp_path):
    class Put(Tiny):
        def loss(self, model, batch, stage):
            values = torch.zeros(4)
            values.put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # which of two values stays?
            terms = super().loss(model, batch, stage)
            return {name: LossTerm(term.sum + 0 * values.sum()) for name, term in terms.items()}

    with pytest.raises(RunError, match=r"training\.deterministic: put_ has no deterministic form on cpu"):
        run_with(tmp_path, {"training": {"deterministic": True}}, rows(), Put)
    assert not torch.are_deterministic_algorithms_enabled()


def test_debug_logs_the_shapes_and_a_profile_is_written(tmp_path):
    run = run_with(tmp_path, {"training": {"debug": True, "profile_steps": 2}}, rows())
    notes = " ".join(record["text"] for record in run.records() if record["kind"] == "note")
    assert "x_BI float32 [8, 6]" in notes
    assert "addmm" in (tmp_path / "profile" / "main.txt").read_text()
    assert json.loads((tmp_path / "profile" / "main.json").read_text())["traceEvents"]


def test_a_stop_saves_at_the_update_and_the_same_command_goes_on_bit_identical(tmp_path):
    values = {"model": {"batch_norm": True, "dropout": 0.2}}
    asked = []

    def after_five() -> bool:
        asked.append(1)
        return len(asked) == 5

    with pytest.raises(Stopped):
        run_with(tmp_path / "a", values, rows(), control=Control(should_stop=after_five))
    run = RunFolder(tmp_path / "a")
    assert checkpoint.last(run.checkpoints).name == "step-00000005"
    run_with(tmp_path / "a", values, rows())
    whole = run_with(tmp_path / "b", values, rows())
    for name, value in last_weights(whole).items():
        assert torch.equal(last_weights(run)[name], value), name
    losses = [
        [r["train/loss"] for r in each.records() if r["kind"] in ("step", "epoch")] for each in (run, whole)
    ]
    assert losses[0] == losses[1]
