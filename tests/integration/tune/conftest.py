"""A search over the tiny task: an experiment and a space in a folder, a prepared dataset beside them."""

from pathlib import Path

import pytest

from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows

EXPERIMENT = """
task: voxray.testing.tiny:Tiny
data: {{path: {dataset}}}
training: {{epochs: 3, batch_size: 25}}
"""
SPACE = """
description: the tiny task
experiment: base.yaml
objective: {metric: val/loss, mode: min}
search:
  sampler: {startup_trials: 2}
  trials: 8
  max_concurrent: 1
  space:
    training.learning_rate: {loguniform: [1e-4, 1e-1]}
    model.hidden_dim: {choice: [8, 16]}
    model.dropout: {uniform: [0.0, 0.5]}
"""


@pytest.fixture(scope="module")
def tiny_dataset(tmp_path_factory) -> Path:
    rows = {"train": tiny_rows(100, 1), "val": tiny_rows(50, 2)}
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", Tiny(TinyConfig()).schema(), rows, 50)


@pytest.fixture(scope="module")
def space(tiny_dataset, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("spaces")
    (folder / "base.yaml").write_text(EXPERIMENT.format(dataset=tiny_dataset))
    (folder / "tiny.yaml").write_text(SPACE)
    return str(folder / "tiny.yaml")
