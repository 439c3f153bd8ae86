"""`--fast-dev-run`: every stage for three updates, saved, loaded and evaluated, in a folder of its own."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from voxray.config.errors import InputError
from voxray.config.resolve import Resolved
from voxray.core.experiment import default_config
from voxray.core.run_config import RunConfig
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.fast_dev_run import fast_dev_run, remove, shortened
from voxray.train.launch import Resume, prepare_folder
from voxray.train.run_folder import RunFolder, run_folder
from voxray.train.worker import train_here

TASK = "voxray.testing.tiny:Tiny"
STAGES = [
    {"name": "first", "epochs": 50, "early_stopping": True, "data": {"limit_samples": 40}},
    {"name": "second", "steps": 9000, "lr_finder": "valley", "start_from": "best", "batch_size": 16},
]


@pytest.fixture
def experiment(tmp_path: Path):
    schema = Tiny(TinyConfig()).schema()
    rows = {"train": tiny_rows(500, 1), "val": tiny_rows(500, 2)}
    dataset = write_dataset(tmp_path / "tiny", schema, rows, 250)
    values: dict[str, Any] = {
        "data.path": str(dataset),
        "storage.path": str(tmp_path / "runs"),
        "experiment_name": "mine",
        "training.batch_size": 32,
        "training.validate_every": {"steps": 1000},
        "logging.wandb.enabled": True,
        "stages": STAGES,
    }
    return default_config(TASK, values, "the test")


def test_it_is_short_and_keeps_away_from_the_real_run(experiment) -> None:
    short = shortened(experiment).config
    assert [stage.training.steps for stage in short.resolved_stages()] == [3, 3]
    assert [stage.training.lr_finder for stage in short.resolved_stages()] == ["off", "off"]
    assert [stage.training.early_stopping for stage in short.resolved_stages()] == [False, False]
    assert [stage.config.data.limit_samples for stage in short.resolved_stages()] == [40, 3 * 32]
    assert [stage.training.validate_every.steps for stage in short.resolved_stages()] == [None, None]
    assert not short.logging.wandb.enabled
    assert run_folder(short).path.name == "mine-fast-dev-run"
    assert run_folder(experiment.config).path.name == "mine"


def test_it_deletes_its_own_folder_alone(tmp_path: Path) -> None:
    remove(RunFolder(tmp_path / "not there"))
    for name, file in (("mine", "config.json"), ("mine-fast-dev-run", "notes.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        with pytest.raises(InputError, match="is no fast run's folder"):
            remove(RunFolder(tmp_path / name))
        assert (tmp_path / name / file).exists()


def test_every_stage_trains_and_what_was_saved_is_evaluated(
    experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(resolved: Resolved[RunConfig], resume: Resume, console: Console) -> RunFolder:
        """Train in this process: what Ray adds is no part of this test."""
        run = run_folder(resolved.config)
        assert prepare_folder(run, resolved, resume, console.print)
        train_here(resolved.config, run.path, lambda metrics: None)
        return run

    monkeypatch.setattr("voxray.train.fast_dev_run.launch", here)
    run, result = fast_dev_run(experiment, Console(quiet=True))
    steps = [(r["stage"], r["step"]) for r in run.records() if r["kind"] == "step"]
    assert steps == [*(("first", n) for n in (1, 2, 3)), *(("second", n) for n in (4, 5, 6))]
    assert run.is_finished()
    assert result["num_rows"] == 3 * 32
    assert result["metrics"]["loss"] > 0
    remove(run)
    assert not run.path.exists()
