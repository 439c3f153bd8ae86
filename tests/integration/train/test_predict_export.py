"""A run trained on Ray, then evaluated, predicted and exported on the command line; its dataset goes away."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import voxray
from one_command import refused
from saved_run import begin_run, save_weights
from voxray.cli.main import app
from voxray.core.experiment import default_config
from voxray.core.schema import Column, Schema
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.config import Config as CxrConfig
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows


@pytest.mark.usefixtures("ray_cluster")
def test_a_trained_run_is_used_after_its_dataset_is_gone(tmp_path: Path, command, capsys) -> None:
    from voxray.train.launch import launch

    rows = {"train": tiny_rows(200, 1), "val": tiny_rows(60, 2), "test": tiny_rows(30, 3)}
    dataset = write_dataset(tmp_path / "dataset", Tiny(TinyConfig()).schema(), rows, 70)
    values = {"data.path": str(dataset), "storage.path": str(tmp_path / "runs"), "training.epochs": 2}
    resolved = default_config("voxray.testing.tiny:Tiny", values, "the test")
    run = launch(resolved, "auto", Console(quiet=True)).path

    assert "val: 60 rows of 60 groups" in command("evaluate", run)
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    best = min(record["val/loss"] for record in logged if "val/loss" in record)
    saved = json.loads((run / "evaluation_val.json").read_text())
    assert saved["metrics"]["loss"] == pytest.approx(best, rel=1e-6)  # what training saw when it chose it

    out = tmp_path / "test.parquet"
    assert "30 rows of" in command("predict", run, out, "--split", "test")
    assert "exists and is never overwritten" in refused(capsys, "predict", run, out)
    command("export", run, tmp_path / "model")
    command("export", run, tmp_path / "model.pt")
    assert "read back and run on real rows, in batches of 8, 1, 3" in command(
        "export", run, tmp_path / "a.pt2"
    )

    other = shutil.move(dataset, tmp_path / "moved")
    trained = voxray.load(tmp_path / "model", device="cpu")
    table = pq.read_table(out).to_pydict()
    order = {name: index for index, name in enumerate(rows["test"]["sample_id"])}
    x = torch.tensor(rows["test"]["x"])[[order[name] for name in table["sample_id"]]]
    with torch.no_grad():
        np.testing.assert_allclose(table["pred"], trained.model(x).numpy(), rtol=1e-5, atol=1e-6)
    assert "is gone; name another one with --data" in refused(capsys, "evaluate", run)
    assert "nothing was written" in refused_nothing(capsys, "evaluate", run, "--data", other)
    assert "made-up rows" in command("export", run, tmp_path / "b.pt2")
    answer = command("evaluate", tmp_path / "model", "--data", other, "--out", tmp_path / "apart", "--json")
    assert json.loads(answer) == [{"metric": "loss", "value": pytest.approx(best, rel=1e-6)}]
    assert (tmp_path / "apart" / "evaluation_val.json").exists()
    with_images = ("predict", run, tmp_path / "c.parquet", "--images", "--data", other)
    assert "does not offer figures" in refused(capsys, *with_images)
    assert not (tmp_path / "c.parquet").exists()


def refused_nothing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run one command and return its notes."""
    capsys.readouterr()
    app(args=[str(argument) for argument in arguments], standalone_mode=False)
    return capsys.readouterr().err


def test_images_are_drawn_from_the_rows_that_were_predicted(tmp_path: Path, command) -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"{index:03d}.png" for index in range(20)], object)
    rows = {
        "sample_id": names,
        "patient_id": names,
        "image": rng.integers(0, 256, (20, 1, 32, 32), dtype=np.uint8),
        "labels": (rng.random((20, len(LABELS))) < 0.3).astype(np.float32),
        "view": names,
        "sex": names,
        "age_years": np.zeros(20, np.float32),
        "follow_up": np.zeros(20, np.int32),
    }
    values = {"data": {"path": str(tmp_path / "xrays")}, "model": {"backbone": "test_efficientnet"}}
    config = CxrConfig.model_validate(values)
    schema = Schema(
        {**CxrMemory(config).schema().columns, "image": Column("uint8", (1, 32, 32))}, "patient_id"
    )
    write_dataset(tmp_path / "xrays", schema, {"val": rows}, 8)
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 1, CxrMemory(config).build_model(), is_best=True)
    out = tmp_path / "p.parquet"
    said = command("predict", run.path, out, "--images")
    page = (tmp_path / "p.parquet.html").read_text()
    assert f"{tmp_path / 'p.parquet.html'}: " in said
    assert page.count("data:image/png;base64,") >= 8  # hits, false alarms, misses
    for title in ("Hits", "False alarms", "Misses"):
        assert title in page
    table = pq.read_table(out)
    assert table.column_names == ["sample_id", "group_id", "scores", "labels"]
    np.testing.assert_array_equal(table["labels"].to_pylist(), rows["labels"])
