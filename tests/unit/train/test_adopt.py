"""A run goes on from another run's checkpoint, which outlives what the other deletes, with its own values."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from voxray.config.errors import RunError
from voxray.testing.sources import ArraySource
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.adopt import finished, offer, step_of, take_in
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder


def write(folder: Path, step: int, value: float, **marks) -> Path:
    taken = snapshot(step, {"model": {"w": torch.full((50,), value)}}, {"step": step}, {})
    return checkpoint.write(folder, taken, **marks)


def value(path: Path) -> float:
    return float(checkpoint.load(path)[0]["model"]["w"][0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_offered_becomes_the_newest_and_outlives_the_donor(tmp_path):
    donor, own = tmp_path / "a/checkpoints", tmp_path / "b/checkpoints"
    write(donor, 10, 1.0)
    write(own, 10, 2.0)
    offer(own, checkpoint.last(donor))
    assert (own / "offered/model.safetensors").stat().st_nlink == 2
    assert checkpoint.last(own).name == "step-00000010"  # until the run begins
    shutil.rmtree(donor)
    told = []
    taken = take_in(own, told.append)
    assert taken.name == "step-00000010.2"
    assert checkpoint.newest(own, pytest.fail) == taken
    assert value(taken) == 1.0
    assert value(own / "step-00000010") == 2.0
    assert told == ["goes on from another run's checkpoint of update 10, kept as step-00000010.2"]
    assert take_in(own, pytest.fail) is None


def test_later_checkpoints_are_set_aside_and_told(tmp_path):
    donor, own = tmp_path / "a/checkpoints", tmp_path / "b/checkpoints"
    for step in (4, 8, 12):
        write(own, step, 2.0)
    told = []
    for again in ("", "-2"):
        offer(own, write(donor, 8, 1.0))
        take_in(own, told.append)
        assert step_of(checkpoint.newest(own, pytest.fail)) == 8
        assert f"aside-step-00000012{again}" in names(own)
        assert f"its own later checkpoints are aside-step-00000012{again}" in told[-1]
        write(own, 12, 3.0)
    assert "step-00000004" in names(own)


def test_a_save_and_a_clean_up_beside_it_leave_the_offer_alone(tmp_path):
    donor, own = tmp_path / "a/checkpoints", tmp_path / "b/checkpoints"
    write(own, 1, 2.0)
    offer(own, write(donor, 5, 1.0))
    for step in (2, 3, 4):
        write(own, step, 2.0)
    checkpoint.prune(own, 1, pytest.fail)
    assert names(own) == ["offered", "step-00000004"]
    assert value(take_in(own, lambda text: None)) == 1.0


def test_the_last_of_two_offers_counts_and_files_are_copied_where_links_are_refused(tmp_path, monkeypatch):
    donor, own = tmp_path / "a/checkpoints", tmp_path / "b/checkpoints"

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        offer(own, write(donor, step, float(step)))
    assert (own / "offered/model.safetensors").stat().st_nlink == 1
    assert value(take_in(own, lambda text: None)) == 2.0
    assert names(tmp_path / "b") == ["checkpoints"]


def test_what_cannot_be_taken_over_is_an_error_or_told(tmp_path):
    donor, own = tmp_path / "a/checkpoints", tmp_path / "b/checkpoints"
    broken = write(donor, 1, 1.0)
    (broken / "MANIFEST.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be taken over"):
        offer(own, broken)
    offer(own, write(donor, 2, 1.0))
    os.unlink(own / "offered/MANIFEST.json")
    told = []
    assert take_in(own, told.append) is None
    assert "cannot be used, see aside-offered" in told[0]
    assert take_in(own, pytest.fail) is None


def test_a_save_that_goes_on_is_waited_for(tmp_path):
    import threading

    write(tmp_path, 3, 1.0)
    late = threading.Timer(0.1, lambda: write(tmp_path, 6, 2.0))
    late.start()
    assert step_of(finished(tmp_path, 6, timeout_s=20.0)) == 6
    assert step_of(finished(tmp_path, 9, timeout_s=0.1)) == 6
    assert finished(tmp_path / "none", 1, timeout_s=0.0) is None


# --- a real run


def config(**training) -> TinyConfig:
    values = {"batch_size": 16, "epochs": 4, "schedule": "constant", "warmup_fraction": 0.0, **training}
    return TinyConfig.model_validate({"training": values, "logging": {"log_every_n_steps": 1}})


class Cut(Exception):
    """What stands for Tune's pause."""


def train(folder: Path, run_config: TinyConfig, epochs: int | None = None) -> RunFolder:
    """Train, or pause after so many epochs' reports."""
    run, source = RunFolder(folder), ArraySource({"train": tiny_rows(72, 1), "val": tiny_rows(40, 2)}, 0, 1)
    folder.mkdir(parents=True, exist_ok=True)

    def report(numbers: dict[str, float]) -> None:
        if numbers["epochs"] == epochs:
            raise Cut

    if epochs is None:
        fit(Tiny(run_config), source, run_config, run, report, torch.device("cpu"))
    else:
        with pytest.raises(Cut):
            fit(Tiny(run_config), source, run_config, run, report, torch.device("cpu"))
    return run


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(r["step"], r["train/loss"]) for r in run.records() if r["kind"] == "step"]


def newest(run: RunFolder) -> tuple[dict, dict]:
    return checkpoint.load(checkpoint.last(run.checkpoints))


OTHER = {"learning_rate": 0.003, "weight_decay": 0.3, "betas": (0.5, 0.9), "ema_decay": 0.8}


@pytest.mark.parametrize("decay_before", [0.1, 0.0])  # without decay biases and matrices share a group
def test_a_member_goes_on_from_the_donor_s_state_with_its_own_values(tmp_path, decay_before):
    before = config(learning_rate=0.02, weight_decay=decay_before, ema_decay=0.5)
    donor = train(tmp_path / "donor", before, epochs=2)
    member = train(tmp_path / "member", config(learning_rate=0.1, ema_decay=0.5, seed=7), epochs=2)
    offer(member.checkpoints, checkpoint.last(donor.checkpoints))
    now = config(**OTHER)
    # The authority: the donor's own run, resumed with the values from the file.
    shutil.copytree(donor.path, tmp_path / "reference")
    reference = train(tmp_path / "reference", now)
    train(member.path, now)
    assert losses(member)[10:] == losses(reference)[10:]
    for stem in ("model", "ema"):
        for name, tensor in newest(reference)[0][stem].items():
            assert torch.equal(newest(member)[0][stem][name], tensor)
    groups = newest(member)[1]["optimizer"]["groups"]
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert {(group["lr"], *group["betas"]) for group in groups} == {(0.003, 0.5, 0.9)}
    notes = [record["text"] for record in member.records() if record["kind"] == "note"]
    assert any("goes on from another run's checkpoint of update 10" in text for text in notes)


def test_other_values_are_used_by_the_next_update(tmp_path):
    """Against torch: AdamW with the new values and the saved moments makes the weights that the run makes."""
    donor = train(tmp_path / "donor", config(learning_rate=0.02, weight_decay=0.1), epochs=2)
    tensors, state = newest(donor)
    now = config(learning_rate=0.003, weight_decay=0.3, betas=(0.5, 0.9), steps=11, clip_grad_norm=None)
    run = train(donor.path, now)
    after, _ = newest(run)
    moments = state["optimizer"]["state"]
    for name, weight in tensors["model"].items():
        first, second = moments[name]["exp_avg"], moments[name]["exp_avg_sq"]
        # From AdamW's formula (arXiv:1711.05101): the gradient follows from the new first moment.
        new = newest(run)[1]["optimizer"]["state"][name]
        gradient = (new["exp_avg"] - 0.5 * first) / 0.5
        expected_second = 0.9 * second + 0.1 * gradient**2
        torch.testing.assert_close(new["exp_avg_sq"], expected_second, rtol=1e-4, atol=1e-8)
        decay = 0.3 if weight.ndim > 1 else 0.0
        step = new["exp_avg"] / (1 - 0.5**11) / ((expected_second / (1 - 0.9**11)).sqrt() + 1e-8)
        torch.testing.assert_close(
            after["model"][name], weight * (1 - 0.003 * decay) - 0.003 * step, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("epochs", [1, 3])
def test_pausing_and_resuming_restores_everything(tmp_path, epochs):
    whole = TinyConfig.model_validate(
        {
            "training": {
                "batch_size": 16,
                "epochs": 4,
                "ema_decay": 0.9,
                "early_stopping": True,
                "patience": 3,
            },
            "model": {"dropout": 0.3, "batch_norm": True},
            "logging": {"log_every_n_steps": 1},
        }
    )
    uninterrupted = train(tmp_path / "whole", whole)
    train(tmp_path / "paused", whole, epochs=epochs)
    paused = train(tmp_path / "paused", whole)
    assert losses(paused) == losses(uninterrupted)
    (tensors, state), (their_tensors, their_state) = newest(paused), newest(uninterrupted)
    for stem, of in their_tensors.items():
        for name, tensor in of.items():
            assert torch.equal(tensors[stem][name], tensor)
    assert str(state) == str(their_state)  # moments, place, early-stop memory


@pytest.mark.parametrize("every", [{"steps": 3}, {"epochs": 1}])
def test_a_report_comes_after_its_checkpoint(tmp_path, every):
    """Nine updates an epoch: those inside an epoch, at its end, at the stage's end."""
    values = {"batch_size": 8, "epochs": 2, "validate_every": every}
    run_config = TinyConfig.model_validate(
        {"training": values, "checkpoints": {"save_every_n_steps": every.get("steps")}}
    )
    run, source = RunFolder(tmp_path), ArraySource({"train": tiny_rows(72, 1), "val": tiny_rows(40, 2)}, 0, 1)
    seen = []

    def report(numbers: dict[str, float]) -> None:
        assert step_of(finished(run.checkpoints, numbers["step"], timeout_s=20.0)) == numbers["step"]
        seen.append(numbers["step"])

    fit(Tiny(run_config), source, run_config, run, report, torch.device("cpu"))
    assert seen == ([3, 6, 9, 12, 15, 18] if "steps" in every else [9, 18])
