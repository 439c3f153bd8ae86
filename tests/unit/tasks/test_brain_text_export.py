"""A brain-to-text run with adapters, read back and exported: the same numbers on any number of trials."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import voxray
from saved_run import begin_run, save_weights
from trial_rows import AUDIO_DIM, NUM_FEATURES, SENTENCES, SESSIONS, SMALL, trial_rows
from voxray.core.schema import Schema
from voxray.tasks.brain_text.config import Config
from voxray.tasks.brain_text.data import BrainTextData
from voxray.tasks.brain_text.task import BrainText
from voxray.tasks.brain_text.units import vocabulary
from voxray.testing.datasets import write_dataset
from voxray.train.trained.export import export
from voxray.train.trained.load import Trained, load

STATISTICS = {"day": {"sessions": list(SESSIONS)}, "text": {"words": vocabulary(SENTENCES)}}


def columns_of(schema: Schema, num_rows: int, seed: int) -> dict[str, Any]:
    """Trials as rows: ragged columns without padding."""
    rows: dict[str, Any] = trial_rows(num_rows, seed)
    for name in schema.columns:
        if f"{name}.length" in rows:
            pairs = zip(rows[name], rows[f"{name}.length"], strict=True)
            rows[name] = [row[:length] for row, length in pairs]
    return {name: rows[name] for name in schema.columns}


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    values = {
        "data": {"path": str(tmp_path / "dataset"), "prepare": {"audio": {"tts": "tones", "tower": "tiny"}}},
        "model": {**SMALL, "llm": {"source": "tiny", "lora": {"rank": 2}}},
        "objective": {"alpha": 1.0, "beta": 1.0, "gamma": 1.0},
        "decoding": {"max_new_tokens": 4},
    }
    config = Config.model_validate(values)
    columns = BrainTextData(config).schema().columns
    shapes = {"neural": (None, NUM_FEATURES), "audio": (None, AUDIO_DIM)}
    schema = Schema(
        {name: replace(own, shape=shapes.get(name, own.shape)) for name, own in columns.items()},
        group="group",
    )
    splits = {"train": columns_of(schema, 9, 0), "val": columns_of(schema, 10, 1)}
    write_dataset(tmp_path / "dataset", schema, splits, 5, STATISTICS)
    torch.manual_seed(0)
    model = BrainText(config, STATISTICS, schema).build_model()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()  # at zero, an adapter is not there
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 7, model, is_best=True)
    return voxray.load(run.path, device="cpu")


@pytest.mark.parametrize("kind", ["torch_export", "onnx"])
def test_a_traced_model_gives_the_same_numbers(kind: Any, trained: Trained, tmp_path: Path) -> None:
    """On 8, 1 and 3 trials, by onnxruntime and torch's own reader."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    done = export(trained, tmp_path / "out", kind)
    assert done.is_real
    assert done.num_rows == 8
    assert done.difference is not None
    assert done.difference < 1e-5


def test_another_decoding_is_not_the_runs_own(trained: Trained) -> None:
    """Its evaluation is not written into the run. Adapters are read back as they were saved."""
    assert trained.run is not None
    other = load(trained.run, device="cpu", overrides=["decoding.control=shuffled"])
    assert other.run is None
    assert other.task.config.decoding.control == "shuffled"
    own = dict(trained.model.named_parameters())
    adapters = {name: value for name, value in other.model.named_parameters() if "lora_" in name}
    assert adapters
    assert all(torch.equal(value, own[name]) for name, value in adapters.items())
