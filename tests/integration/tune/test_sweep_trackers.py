"""A W&B sweep file on a real Ray cluster, shown in TensorBoard and W&B from the driver alone."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from voxray.train.run_folder import RunFolder
from voxray.train.worker import train_here
from voxray.tune.checks import check_metrics
from voxray.tune.plan import load_plan
from voxray.tune.search import search
from voxray.tune.study.folder import open_study
from voxray.tune.trackers.trial_trackers import TrialTrackers
from wandb_files import wandb_records

pytestmark = pytest.mark.usefixtures("ray_cluster", "wandb_alone")

SWEEP = """
program: train.py
name: a sweep
method: grid
metric: {name: val_loss, goal: minimize}
parameters:
  lr:
    values: [0.01, 0.001]
  model:
    parameters:
      hidden_dim: {values: [8, 16]}
  epochs: {value: 2}
"""


@pytest.fixture
def wandb_alone(tmp_path, monkeypatch):
    """W&B without this user's settings and credentials, its process ended afterwards."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    yield
    wandb.teardown()


def wandb_steps(folder: Path) -> tuple[str, dict[int, float], dict]:
    """The group, the validation losses by step, and the summary that a run's files hold."""
    group, losses, summary = "", {}, {}
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            group = record.run.run_group
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            if kind == "summary":
                summary |= values
            elif "val/loss" in values:
                losses[values["step"]] = values["val/loss"]
    return group, losses, summary


def test_a_sweep_file_runs_as_it_is_and_is_shown(space, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "sweep.yaml").write_text(SWEEP)
    arguments = [
        f"experiment={Path(space).parent / 'base.yaml'}",
        f"storage.path={tmp_path}",
        "search.max_concurrent=2",
        "logging.tensorboard=true",
        "logging.wandb.enabled=true",
    ]
    plan = load_plan(str(tmp_path / "sweep.yaml"), arguments)
    check_metrics(plan)
    assert any("as a space file it reads:" in note for note in plan.space.notes)
    said = []
    with open_study(plan) as ledger:
        assert search(plan, ledger, train_here, said.append, lambda row: None)
        rows = ledger.rows()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tracker ")]
    drawn = {(row.values["training.learning_rate"], row.values["model.hidden_dim"]) for row in rows}
    assert drawn == {(0.01, 8), (0.01, 16), (0.001, 8), (0.001, 16)}
    assert len(rows) == 4
    assert f"TensorBoard: tensorboard --logdir {plan.folder}" in said
    assert "W&B: project voxray, group a-sweep" in said
    assert not any("off for now" in text or "not whole" in text for text in said)

    for row in rows:
        run = RunFolder(plan.trial_folder(row.index))
        logged = {r["step"]: r["val/loss"] for r in run.records() if r["kind"] == "epoch"}
        assert len(logged) == 2
        (folder,) = (run.path / "wandb").glob("offline-run-*")
        group, losses, summary = wandb_steps(folder)
        assert (group, losses) == ("a-sweep", pytest.approx(logged))
        assert (summary["trial/state"], summary["score/val/loss"]) == ("complete", row.value)
        events = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("val/loss")
        assert {event.step: event.value for event in events} == pytest.approx(logged)
        (score,) = (
            EventAccumulator(str(plan.folder / "tensorboard" / run.path.name)).Reload().Scalars("val/loss")
        )
        assert (score.step, score.value) == (row.step, pytest.approx(row.value))

    # A study that is finished: the same command sends a tracker what it has not.
    lost = RunFolder(plan.trial_folder(2))
    shutil.rmtree(lost.path / "tensorboard")
    (lost.path / "trackers" / "tensorboard.json").unlink()
    with TrialTrackers.of(plan, said.append) as trackers:
        trackers.catch_up(rows, plan.run_folders)
    assert len(EventAccumulator(str(lost.path / "tensorboard")).Reload().Scalars("val/loss")) == 2
    assert len(list((lost.path / "wandb").glob("offline-run-*"))) == 1  # W&B had it all


def test_the_cells_of_an_ablation_are_shown_by_arm_and_seed(space, tmp_path):
    from voxray.tune.ablation.cells import load_ablation
    from voxray.tune.ablation.run import open_ablation, train_cells

    (tmp_path / "arms.yaml").write_text(
        f"experiment: {Path(space).parent / 'base.yaml'}\n"
        "objective: {metric: val/loss, mode: min}\n"
        "ablate: {seeds: [3], arms: {narrow: {model.hidden_dim: 4}}}\n"
    )
    settings = ["logging.tensorboard=true", "logging.wandb.enabled=true", "training.epochs=1"]
    plan = load_plan(str(tmp_path / "arms.yaml"), [f"storage.path={tmp_path}", *settings])
    said = []
    with open_ablation(load_ablation(plan)) as ledger:
        assert train_cells(ledger, train_here, said.append, lambda row: None)
        folders = [ledger.folder(row.index) for row in ledger.rows()]
    assert not any("off for now" in text or "not whole" in text for text in said)
    shown = set()
    for folder in folders:
        (files,) = (folder / "wandb").glob("offline-run-*")
        (begun,) = [r.run for r in wandb_records(files) if r.WhichOneof("record_type") == "run"]
        shown.add((begun.display_name, begun.run_group, begun.job_type))
        assert (plan.folder / "tensorboard" / folder.name).is_dir()
    assert shown == {("baseline seed 3", "arms", "trial"), ("narrow seed 3", "arms", "trial")}
