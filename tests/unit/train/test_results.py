"""What a finished run leaves: stage weights and named predictions, from the best weights, never over a file
that the run did not write.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

import voxray
from saved_run import begin_run, save_weights
from voxray.cli.main import app, main
from voxray.data.manifest import load_manifest
from voxray.tasks.cxr_memory.config import LABELS
from voxray.tasks.cxr_memory.config import Config as CxrConfig
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.datasets import write_dataset
from voxray.testing.sources import ArraySource
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.checkpoints import checkpoint
from voxray.train.loop import fit
from voxray.train.run_folder import RunFolder
from voxray.train.trained.dataset_facts import DatasetFacts
from voxray.train.trained.predictions import predict
from voxray.train.trained.results import write_results

CPU = torch.device("cpu")
ROWS = {"train": tiny_rows(64, 1), "val": tiny_rows(40, 2)}
# A rate that spoils the weights makes an early evaluation the best of the first stage.
TWO_STAGES = [
    {"name": "phase1", "epochs": 5, "learning_rate": 0.2, "schedule": "constant"},
    {"name": "phase2", "epochs": 2, "learning_rate": 1e-3, "start_from": "phase1/best"},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset", Tiny(TinyConfig()).schema(), ROWS, 30)


def config_of(dataset: Path, **values) -> TinyConfig:
    defaults = {
        "experiment_name": "two",
        "data": {"path": str(dataset)},
        "stages": TWO_STAGES,
        "training": {"batch_size": 4, "clip_grad_norm": None},
    }
    checkpoints = {"keep": 1, "export_stages": ["phase1", "phase2"], "evaluate_at_end": ["val"]}
    return TinyConfig.model_validate({**defaults, "checkpoints": checkpoints, **values})


def trained(folder: Path, config: TinyConfig) -> RunFolder:
    """Train without Ray; a run that is there goes on."""
    run = RunFolder(folder)
    run.write_config(config, {})
    DatasetFacts.of(config.data.path, load_manifest(config.data.path)).write(folder)
    fit(Tiny(config), ArraySource(ROWS), config, run, lambda metrics: None, CPU)
    return run


def names(files: list[Path], run: RunFolder) -> list[str]:
    return [str(file.relative_to(run.path)) for file in files]


def test_a_finished_run_leaves_the_guides_files(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset)
    run = trained(tmp_path / "run", config)
    results = write_results(run, config)
    assert names(results.files, run) == [
        "models/two_phase1.pth",
        "models/two_phase2.pth",
        "evaluation_val.json",
        "two_predictions.parquet",
        "two_predictions.pt",
    ]
    assert not results.notes
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    losses = [record["val/loss"] for record in epochs if record["stage"] == "phase1"]
    steps = [record["step"] for record in epochs if record["stage"] == "phase1"]
    best = checkpoint.best(run.checkpoints, 0)
    assert best is not None
    assert best.name == f"step-{steps[int(np.argmin(losses))]:08d}" != f"step-{steps[-1]:08d}"
    kept = torch.load(run.path / "models/two_phase1.pth", weights_only=True)
    for name, value in checkpoint.load_weights(best).items():
        assert torch.equal(kept[name], value)
    assert set(kept) == set(Tiny(config).build_model().state_dict())
    assert results.evaluations[0]["metrics"]["loss"] == pytest.approx(epochs[-1]["val/loss"], abs=0.05)
    assert not list(run.path.rglob("*partial*"))


def test_exported_weights_are_what_another_run_starts_from(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset, checkpoints={"export_stages": ["phase1"], "export_name": "saved"})
    run = trained(tmp_path / "run", config)
    [file] = write_results(run, config).files
    assert file == run.path / "models" / "saved_phase1.pth"
    training = {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0, "start_from": str(file)}
    other = trained(tmp_path / "other", config_of(dataset, stages=[], training=training, checkpoints={}))
    end, before = checkpoint.last(other.checkpoints), torch.load(file, weights_only=True)
    assert end is not None
    for name, value in checkpoint.load_weights(end).items():
        torch.testing.assert_close(value, before[name], atol=1e-7, rtol=0)


def test_averaged_weights_are_exported_and_without_a_best_the_last(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset)
    models = [Tiny(config).build_model() for _ in range(3)]
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 1, models[0], ema=models[1], is_best=True)
    save_weights(run, config, 2, models[2], stage=1)
    write_results(run, config)
    for stage, model in ((1, models[1]), (2, models[2])):
        saved = torch.load(run.path / f"models/two_phase{stage}.pth", weights_only=True)
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_a_stage_whose_checkpoints_are_gone_is_noted(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset)
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 2, Tiny(config).build_model(), stage=1)
    results = write_results(run, config)
    assert results.notes == ["no checkpoint of stage 'phase1' is left, so its weights are not exported"]
    assert (run.path / "models/two_phase2.pth").exists()


def test_what_is_there_stays_and_what_is_missing_comes(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset)
    run = trained(tmp_path / "run", config)
    write_results(run, config)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    again = write_results(run, config)
    assert not again.files + again.evaluations + again.notes
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    (run.path / "two_predictions.pt").unlink()
    (run.path / "models/two_phase1.pth").unlink()
    assert names(write_results(run, config).files, run) == ["models/two_phase1.pth", "two_predictions.pt"]


def test_nothing_of_the_users_is_overwritten(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset)
    run = trained(tmp_path / "run", config)
    mine = run.path / "models/two_phase1.pth"
    mine.parent.mkdir()
    mine.write_text("mine")
    first = write_results(run, config)
    assert first.notes == [f"{mine} is not what this run wrote, so it stays as it is"]
    changed = run.path / "two_predictions.pt"
    changed.write_text("changed")
    assert len(write_results(run, config).notes) == 2
    assert (mine.read_text(), changed.read_text()) == ("mine", "changed")


def test_more_epochs_renew_what_the_run_itself_wrote(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset)
    run = trained(tmp_path / "run", config)
    write_results(run, config)
    before = torch.load(run.path / "models/two_phase2.pth", weights_only=True)
    longer = config_of(dataset, stages=[TWO_STAGES[0], {**TWO_STAGES[1], "epochs": 8}])
    trained(run.path, longer)
    results = write_results(run, longer)
    assert "models/two_phase1.pth" not in names(results.files, run)
    assert {"models/two_phase2.pth", "two_predictions.pt"} <= set(names(results.files, run))
    best = checkpoint.best(run.checkpoints)
    assert best is not None
    assert [result["checkpoint"] for result in results.evaluations] == [best.name]
    after = torch.load(run.path / "models/two_phase2.pth", weights_only=True)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert not results.notes


def test_a_split_that_cannot_be_evaluated_is_noted(dataset: Path, tmp_path: Path) -> None:
    config = config_of(dataset, checkpoints={"evaluate_at_end": ["test", "val"]})
    run = trained(tmp_path / "run", config)
    results = write_results(run, config)
    [note] = results.notes
    assert "split 'test' was not evaluated: " in note
    assert "it has train, val" in note
    assert (run.path / "evaluation_val.json").exists()


def test_a_stage_that_is_not_declared_is_refused_when_the_config_is_read(dataset: Path) -> None:
    with pytest.raises(ValidationError, match="'phase3' is no stage; there are phase1, phase2"):
        config_of(dataset, checkpoints={"export_stages": ["phase1", "phase3"]})
    with pytest.raises(ValidationError, match="'phase1' is no stage; there are main"):
        config_of(dataset, stages=[], checkpoints={"export_stages": ["phase1"]})
    off = config_of(dataset, stages=[{**TWO_STAGES[0], "enabled": False}, {"name": "phase2"}])
    assert off.checkpoints.export_stages == ("phase1", "phase2")


@pytest.fixture
def cxr(tmp_path: Path) -> tuple[RunFolder, CxrConfig, dict[str, np.ndarray]]:
    """An untrained chest X-ray run; of 14 findings only Pneumonia is known, and not in every image."""
    rng = np.random.default_rng(0)
    ids = np.array([f"{index:03d}.png" for index in range(20)], object)
    labels = np.full((20, len(LABELS)), np.nan, np.float32)
    labels[:18, LABELS.index("Pneumonia")] = rng.random(18) < 0.4
    rows = {
        "sample_id": ids,
        "patient_id": np.array([f"p{index // 2}" for index in range(20)], object),
        "image": rng.integers(0, 256, (20, 1, 32, 32), dtype=np.uint8),
        "labels": labels,
        "view": ids,
        "sex": ids,
        "age_years": np.zeros(20, np.float32),
        "follow_up": np.zeros(20, np.int32),
    }
    config = CxrConfig.model_validate(
        {
            "experiment_name": "memory_rarity_effv2s",
            "data": {"path": str(tmp_path / "xrays"), "prepare": {"image_size": 32}},
            "model": {"backbone": "test_efficientnet"},
            "memory": {"use_memory": True, "bank_size": 8},
            "checkpoints": {"evaluate_at_end": ["val"], "export_stages": ["main"]},
        }
    )
    task = CxrMemory(config)
    write_dataset(tmp_path / "xrays", task.schema(), {"val": rows}, 8)
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 1, task.build_model())
    return run, config, rows


def test_predictions_hold_ids_labels_and_probabilities(cxr) -> None:
    """One row per image, for torch without pickle and for pandas alone; the names of the labels in both."""
    run, config, rows = cxr
    write_results(run, config)
    saved = torch.load(run.path / "memory_rarity_effv2s_predictions.pt", weights_only=True)
    assert saved["sample_id"] == list(rows["sample_id"])
    assert saved["group_id"] == list(rows["patient_id"])
    assert saved["labels"].dtype == torch.float32
    np.testing.assert_array_equal(saved["labels"].numpy(), rows["labels"])
    assert saved["names"] == {"labels": list(LABELS)}
    assert saved["about"]["split"] == "val"
    model = voxray.load(run.path, device="cpu").model
    with torch.no_grad():
        expected = model(torch.from_numpy(rows["image"])).sigmoid()
    torch.testing.assert_close(saved["scores"], expected, atol=1e-6, rtol=0)
    frame = pd.read_parquet(run.path / "memory_rarity_effv2s_predictions.parquet")
    assert list(frame["sample_id"]) == saved["sample_id"]
    np.testing.assert_array_equal(np.stack(list(frame["scores"])), saved["scores"].numpy())
    np.testing.assert_array_equal(np.stack(list(frame["labels"])), rows["labels"])
    assert frame.attrs["names"]["labels"] == list(LABELS)
    bank = torch.load(run.path / "models/memory_rarity_effv2s_main.pth", weights_only=True)
    assert any("bank" in name for name in bank)


def test_the_evaluation_is_of_the_known_labels_alone(cxr) -> None:
    from sklearn.metrics import roc_auc_score

    run, config, rows = cxr
    [result] = write_results(run, config).evaluations
    column = LABELS.index("Pneumonia")
    saved = torch.load(run.path / "memory_rarity_effv2s_predictions.pt", weights_only=True)
    expected = roc_auc_score(rows["labels"][:18, column], saved["scores"][:18, column].numpy())
    assert result["metrics"]["auroc"] == pytest.approx(expected, abs=1e-9)
    assert result["metrics"]["num_defined"] == 1
    logits = saved["scores"][:18, column].double().logit()
    targets = torch.from_numpy(rows["labels"][:18, column]).double()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert result["metrics"]["loss"] == pytest.approx(float(bce), rel=1e-5)
    written = json.loads((run.path / "evaluation_val.json").read_text())
    assert [row["auroc"] is None for row in written["table"]].count(False) == 1


def test_predict_writes_tensors_where_the_name_ends_in_pt(cxr, tmp_path: Path) -> None:
    run = cxr[0]
    loaded = voxray.load(run.path, device="cpu")
    assert predict(loaded, tmp_path / "p.pt", "val").num_rows == 20
    predict(loaded, tmp_path / "p.parquet", "val")
    saved, table = torch.load(tmp_path / "p.pt", weights_only=True), pq.read_table(tmp_path / "p.parquet")
    np.testing.assert_array_equal(saved["scores"].numpy(), np.array(table["scores"].to_pylist(), np.float32))
    assert sorted(path.name for path in tmp_path.glob("*p.p*")) == ["p.parquet", "p.pt"]
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(run.path), str(tmp_path / "q.pt"), "--images"])


def test_the_command_tells_what_it_wrote_and_goes_on_after_an_interrupt(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupt while the results are written leaves none of them; the same command writes them."""
    config = config_of(dataset)
    run = trained(tmp_path / "run", config)
    (tmp_path / "two.yaml").write_text(
        json.dumps({**config.model_dump(mode="json"), "task": "voxray.testing.tiny:Tiny"})
    )
    monkeypatch.setattr("voxray.cluster.connect.connect", contextlib.nullcontext)
    monkeypatch.setattr("voxray.train.launch.launch", lambda resolved, resume, console, also: run)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("voxray.train.trained.results.evaluate_run", interrupted)
        with pytest.raises(SystemExit, match="130"):
            main(["train", str(tmp_path / "two.yaml")])
    assert not (run.path / "evaluation_val.json").exists()
    capsys.readouterr()
    app(args=["train", str(tmp_path / "two.yaml")], standalone_mode=False)
    out = capsys.readouterr().out
    assert f"wrote {run.path / 'two_predictions.pt'}" in out
    assert "val: 40 rows" in out
    assert f"next: voxray report {run.path}" in out
