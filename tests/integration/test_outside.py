"""A task, a loss and a metric outside voxray, found in the working directory by driver and workers."""

import json
import subprocess
import sys

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

TASK = """
from voxray.testing.tiny import Tiny, TinyConfig

class MineConfig(TinyConfig, frozen=True):
    task: str = "mine.tasks:Mine"

class Mine(Tiny):
    Config = MineConfig

    def metric_names(self):
        return ("loss", "answer")

    def summarize(self, merged):
        return {**super().summarize(merged), "answer": 42.0}
"""
EXPERIMENT = """
task: mine.tasks:Mine
description: a task of my own
data: {path: dataset}
training: {epochs: 1, monitor: val/answer}
"""


def test_a_task_of_the_working_directory_trains_on_ray(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tasks.py").write_text(TASK)
    (tmp_path / "own.yaml").write_text(EXPERIMENT)
    rows = {"train": tiny_rows(64, 1), "val": tiny_rows(20, 2)}
    write_dataset(tmp_path / "dataset", Tiny(TinyConfig()).schema(), rows, 64)
    command = [sys.executable, "-m", "voxray", "train", "own.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "runs" / "Mine" / "own" / "log.jsonl").read_text()
    epochs = [record for record in map(json.loads, log.splitlines()) if record["kind"] == "epoch"]
    assert [record["val/answer"] for record in epochs] == [42.0]


def test_a_loss_and_a_metric_outside_change_what_is_computed(monkeypatch, tmp_path):
    import numpy as np
    import torch

    from voxray.core.evaluation import Evaluation, Rows, Sum
    from voxray.core.experiment import default_config
    from voxray.tasks.cxr_memory.task import CxrMemory

    (tmp_path / "extras_of_mine.py").write_text(
        "def twice(logits, targets):\n    return 2.0 + 0 * logits\n"
        "def positives(labels, scores):\n    return float((labels == 1).sum())\n"
    )
    monkeypatch.chdir(tmp_path)
    values = {"objective.loss": "extras_of_mine:twice", "objective.metrics": ["extras_of_mine:positives"]}
    task = CxrMemory(default_config("cxr_memory", values, "the test").config)
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    assert float(task._summed(torch.zeros(2, 2), labels)) == 2.0 * 3
    rows = Rows(["a", "b"], ["a", "b"], {"labels": labels.numpy(), "scores": np.full((2, 2), 0.5, "float32")})
    merged = Evaluation({"loss": Sum(torch.tensor(1.0), torch.tensor(1.0))}, rows)
    assert task.summarize(merged)["positives"] == 2.0
    assert "positives" in task.metric_names()
