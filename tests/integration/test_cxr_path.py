"""Synthetic X-rays, raw to evaluated: the model beats the linear floor on held-out patients."""

import json

import pytest
from rich.console import Console

from voxray.core.experiment import default_config
from voxray.core.registry import task_class
from voxray.data.prepare import prepare
from voxray.train.launch import launch
from voxray.train.trained.evaluate_run import evaluate_run
from voxray.train.trained.load import load

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_small_network_beats_the_linear_floor_on_held_out_patients(tmp_path):
    values = {
        "data.path": str(tmp_path / "dataset"),
        "storage.path": str(tmp_path / "runs"),
        "model.backbone": "test_efficientnet",
        "training.epochs": 8,
        "training.learning_rate": 3e-3,
        "training.monitor": "val/auroc",
        "training.monitor_mode": "max",
    }
    resolved = default_config("cxr_memory", values, "the test")
    task = task_class("cxr_memory")(resolved.config)
    told = task.synth(tmp_path / "raw", "tiny", seed=0)
    prepare(task, tmp_path / "raw", tmp_path / "dataset")
    run = launch(resolved, "auto", Console(quiet=True))
    result = evaluate_run(load(run.path), "test", with_floor=True)
    assert told.chance == 0.5
    assert told.floor < told.oracle
    assert result["floor"]["auroc"] + 0.08 < result["metrics"]["auroc"] < told.oracle
    low, high = result["intervals"]["auroc"]
    assert low < result["metrics"]["auroc"] < high
    assert len(result["table"]) == 14
    saved = json.loads((run.path / "evaluation_test.json").read_text())
    assert saved["metrics"]["auroc"] == result["metrics"]["auroc"]
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert {"commit", "lock_sha256", "versions"} <= provenance.keys()
