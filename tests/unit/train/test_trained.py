"""A trained model, read back: the weights that were saved, the numbers that numpy gives, errors that mend."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import voxray
from saved_run import begin_run, save_weights
from voxray.config.errors import InputError, RunError
from voxray.core.schema import Column, Schema
from voxray.tasks.cxr_memory.config import Config as CxrConfig
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.trained import predictions
from voxray.train.trained.predictions import arrow_column, predict

ROWS = {"train": tiny_rows(40, 1), "val": tiny_rows(50, 2)}
SCHEMA = Tiny(TinyConfig()).schema()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset", SCHEMA, ROWS, 30)


@pytest.fixture
def config(dataset: Path) -> TinyConfig:
    return TinyConfig.model_validate({"data": {"path": str(dataset)}, "training": {"batch_size": 8}})


def model_of(config: TinyConfig, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Tiny(config).build_model()


@pytest.fixture
def run(config: TinyConfig, tmp_path: Path) -> Path:
    """A run whose best checkpoint is of update 5, made from seed 5, and whose last of update 9, seed 9."""
    run = begin_run(tmp_path / "runs" / "mine", config)
    save_weights(run, config, 5, model_of(config, 5), is_best=True)
    save_weights(run, config, 9, model_of(config, 9))
    return run.path


def outputs(model: torch.nn.Module, rows: dict[str, np.ndarray] = ROWS["val"]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(rows["x"]).to(next(model.parameters()).device)).cpu().numpy()


def by_hand(model: torch.nn.Module, rows: dict[str, np.ndarray]) -> np.ndarray:
    """The perceptron in numpy, float64."""
    first_w, first_b, last_w, last_b = (value.double().numpy() for value in model.state_dict().values())
    hidden = np.maximum(rows["x"].astype(np.float64) @ first_w.T + first_b, 0)
    return hidden @ last_w.T + last_b


@pytest.mark.parametrize(
    ("name", "seed"),
    [("", 5), ("best", 5), ("last", 9), ("checkpoints/step-00000005", 5), ("checkpoints/step-00000009", 9)],
)
def test_a_reference_names_the_weights_that_were_saved(run: Path, config, name: str, seed: int) -> None:
    trained = voxray.load(run / name, device="cpu")
    assert isinstance(trained.task, Tiny)
    assert not trained.model.training
    assert trained.config == config
    np.testing.assert_array_equal(outputs(trained.model), outputs(model_of(config, seed).eval()))


def test_averaged_weights_are_taken_where_the_run_kept_them(run: Path, config) -> None:
    from voxray.train.run_folder import RunFolder

    save_weights(RunFolder(run), config, 12, model_of(config, 1), ema=model_of(config, 2), is_best=True)
    trained = voxray.load(run, device="cpu")
    assert trained.is_averaged
    np.testing.assert_array_equal(outputs(trained.model), outputs(model_of(config, 2).eval()))


def test_without_a_best_the_last_is_taken(run: Path, config) -> None:
    for pointer in (run / "checkpoints").glob("best*.json"):
        pointer.unlink()
    np.testing.assert_array_equal(
        outputs(voxray.load(run, device="cpu").model), outputs(model_of(config, 9).eval())
    )
    with pytest.raises(InputError, match=r"holds no best checkpoint"):
        voxray.load(run / "best")


def test_the_model_outlives_its_dataset(run: Path, config, dataset: Path) -> None:
    shutil.rmtree(dataset)
    trained = voxray.load(run, device="cpu")
    np.testing.assert_array_equal(outputs(trained.model), outputs(model_of(config, 5).eval()))
    with pytest.raises(
        InputError, match=r"the run's dataset .*dataset is gone; name another one with --data"
    ):
        voxray.evaluate(trained)
    (run / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"there is no folder"):
        voxray.load(run)


def test_a_run_without_facts_asks_its_dataset(run: Path, config) -> None:
    before = voxray.load(run, device="cpu").facts
    (run / "dataset.json").unlink()
    assert voxray.load(run, device="cpu").facts == before


def test_the_values_of_the_weights_stage_hold(dataset: Path, tmp_path: Path) -> None:
    """Stage 0 has a narrow model and all rows, stage 1 a wide model and the rows of one group."""
    wide = {"name": "wide", "model": {"hidden_dim": 32}, "data": {"filter": "group == 'row00003'"}}
    stages = [{"name": "narrow"}, wide]
    config = TinyConfig.model_validate({"data": {"path": str(dataset)}, "stages": stages})
    run = begin_run(tmp_path / "staged", config)
    for stage in config.resolved_stages():
        save_weights(run, config, stage.index + 1, model_of(stage.config, 0), stage=stage.index)
    wide = voxray.load(run.path, device="cpu")
    assert (wide.stage.name, len(outputs(wide.model)), wide.task.config.model.hidden_dim) == ("wide", 50, 32)
    assert voxray.evaluate(wide)["num_rows"] == 1
    narrow = voxray.load(run.checkpoints / "step-00000001", device="cpu")
    assert (narrow.stage.name, narrow.task.config.model.hidden_dim) == ("narrow", 16)
    assert voxray.evaluate(narrow)["num_rows"] == 50


def test_evaluation_is_numpys_and_lies_in_the_run(run: Path, config) -> None:
    result = voxray.evaluate(run)
    expected = by_hand(model_of(config, 5), ROWS["val"])
    known = ~np.isnan(ROWS["val"]["y"])
    assert result["metrics"]["loss"] == pytest.approx(
        ((expected - ROWS["val"]["y"])[known] ** 2).mean(), rel=1e-5
    )
    assert (result["num_rows"], result["num_groups"], result["checkpoint"]) == (50, 50, "step-00000005")
    assert json.loads((run / "evaluation_val.json").read_text())["metrics"] == result["metrics"]
    table = pq.read_table(run / "predictions_val.parquet").to_pydict()
    assert table["sample_id"] == sorted(ROWS["val"]["sample_id"])
    np.testing.assert_allclose(table["pred"], expected, rtol=1e-4, atol=1e-5)
    assert voxray.evaluate(run)["metrics"] == result["metrics"]  # written anew: it is the run's own


def test_another_dataset_is_evaluated_apart(run: Path, config, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", SCHEMA, {"test": tiny_rows(13, 7)}, 30)
    trained = voxray.load(run, device="cpu")
    result = voxray.evaluate(trained, other, tmp_path / "out", split="test")
    assert (result["num_rows"], result["dataset"]) == (13, str(other))
    assert json.loads((tmp_path / "out" / "evaluation_test.json").read_text())["num_rows"] == 13
    with pytest.raises(InputError, match=r"predictions_test\.parquet exists and is never overwritten"):
        voxray.evaluate(trained, other, tmp_path / "out", split="test")
    with pytest.raises(InputError, match=r"has no rows in split 'val'; it has test"):
        voxray.evaluate(trained, other)
    assert not list(run.glob("evaluation_*"))
    voxray.evaluate(run / "last")  # not what RUN stands for: its numbers are not the run's
    assert not list(run.glob("evaluation_*"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": None}, r"it has no column 'x'"),
        ({"x": Column("float32", (5,))}, r"its column 'x' has the shape 5, not 6"),
        ({"x": Column("float64", (6,))}, r"its column 'x' holds float64, not float32"),
        ({"y": Column("float32", (2,), names=("b", "a"))}, r"entries of its column 'y' are called otherwise"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(run: Path, tmp_path: Path, columns, message: str) -> None:
    changed = {name: column for name, column in {**SCHEMA.columns, **columns}.items() if column}
    rows = {name: values for name, values in tiny_rows(12, 3).items() if name in changed}
    if "x" in rows:
        rows["x"] = rows["x"][:, : changed["x"].shape[0]].astype(changed["x"].dtype)
    other = write_dataset(tmp_path / "other", Schema(changed, group="group"), {"val": rows}, 30)
    with pytest.raises(InputError, match=message + ".*; prepare it as the run's dataset was"):
        voxray.evaluate(run, other, tmp_path / "out")


def test_predictions_are_streamed_in_row_groups(run: Path, config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(predictions, "ROW_GROUP_BYTES", 1)
    out = tmp_path / "predictions.parquet"
    done = predict(voxray.load(run, device="cpu"), out, "val")
    file = pq.ParquetFile(out)
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert sizes == [8, 8, 8, 8, 8, 8, 2]  # a batch each: nothing waits for a later one
    assert done.num_rows == 50
    table = file.read().to_pydict()
    assert list(table) == ["sample_id", "group_id", "pred"]
    order = {name: index for index, name in enumerate(ROWS["val"]["sample_id"])}
    rows = [order[name] for name in table["sample_id"]]
    assert sorted(rows) == list(range(50))
    expected = by_hand(model_of(config, 5), ROWS["val"])[rows]
    np.testing.assert_allclose(table["pred"], expected, rtol=1e-4, atol=1e-5)
    assert file.schema_arrow.metadata[b"voxray.checkpoint"] == b"step-00000005"


def test_every_row_is_predicted_whatever_the_run_left_out(dataset: Path, tmp_path: Path) -> None:
    values = {"data": {"path": str(dataset), "limit_samples": 3, "filter": "group == 'row00003'"}}
    config = TinyConfig.model_validate(values)
    run = begin_run(tmp_path / "few", config)
    save_weights(run, config, 1, model_of(config, 0))
    assert predict(voxray.load(run.path), tmp_path / "all.parquet", "val").num_rows == 50


def test_what_exists_is_never_overwritten_and_what_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(predictions, "ROW_GROUP_BYTES", 1)
    out = tmp_path / "out" / "predictions.parquet"
    out.parent.mkdir()
    out.write_text("mine")
    trained = voxray.load(run, device="cpu")
    with pytest.raises(InputError, match="exists and is never overwritten"):
        predict(trained, out, "val")
    assert out.read_text() == "mine"
    out.unlink()
    original = trained.task.evaluate
    calls = []

    def fails_later(*args):
        calls.append(1)
        if len(calls) == 3:
            raise RunError("it broke")
        return original(*args)

    trained.task.evaluate = fails_later
    with pytest.raises(RunError, match="it broke"):
        predict(trained, out, "val")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3), (5, 0), (5, 1, 4, 2)])
def test_arrays_become_nested_lists(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert arrow_column(values).to_pylist() == values.tolist()


def test_text_and_ragged_rows_become_columns() -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.array([1, 2]), np.array([3])]
    assert arrow_column(ragged).to_pylist() == [[1, 2], [3]]
    assert arrow_column(np.array(["a", "b"], object)).to_pylist() == ["a", "b"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "state.pt", "MANIFEST.json"])
def test_one_flipped_bit_is_noticed(run: Path, name: str) -> None:
    damage(run / "checkpoints" / "step-00000005" / name)
    with pytest.raises(RunError, match=rf"step-00000005 cannot be used: .*({name}|manifest)"):
        voxray.load(run)


def test_what_is_no_model_is_told(run: Path, config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run"):
        voxray.load(tmp_path / "nothing")
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights\.pt holds weights alone"):
        voxray.load(tmp_path / "weights.pt")
    empty = begin_run(tmp_path / "empty", config)
    with pytest.raises(InputError, match=r"holds no checkpoint; train it first"):
        voxray.load(empty.path)
    (run / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"dataset\.json is broken"):
        voxray.load(run)


def test_another_programs_config_and_code_are_told(run: Path, config, monkeypatch) -> None:
    from voxray.train.run_folder import RunFolder

    class Older(TinyConfig, frozen=True):
        gone: int = 3

    save_weights(
        RunFolder(run), Older.model_validate(config.model_dump()), 12, model_of(config, 1), is_best=True
    )
    with pytest.raises(InputError, match=r"config\.json does not fit this voxray: gone: Extra inputs"):
        voxray.load(run)
    monkeypatch.setattr(Tiny, "build_model", lambda self: torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"do not fit the model that its config describes.*Missing key"):
        voxray.load(run / "checkpoints" / "step-00000009")


def test_weights_at_hand_need_no_hub(tmp_path: Path, monkeypatch) -> None:
    """`model.pretrained` says where a training begins; to load what it ended with, nothing is fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    values = {"data": {"path": str(tmp_path / "xrays")}, "model": {"backbone": "test_efficientnet"}}
    plain = CxrConfig.model_validate(values)
    labels = np.full((4, 14), np.nan, np.float32)
    text = np.array(["a", "b", "c", "d"], object)
    numbers = {"age_years": np.zeros(4, np.float32), "follow_up": np.zeros(4, np.int32)}
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 32, 32), dtype=np.uint8)
    rows = {
        "sample_id": text,
        "patient_id": text,
        "view": text,
        "sex": text,
        "labels": labels,
        "image": images,
    }
    schema = Schema(
        {**CxrMemory(plain).schema().columns, "image": Column("uint8", (1, 32, 32))}, "patient_id"
    )
    write_dataset(tmp_path / "xrays", schema, {"val": {**rows, **numbers}}, 4)
    model = CxrMemory(plain).build_model().eval()
    values["model"]["pretrained"] = True
    config = CxrConfig.model_validate(values)
    with pytest.raises(InputError, match=r"connect to the hub once"):
        CxrMemory(config).build_model()
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 1, model)
    trained = voxray.load(run.path, device="cpu")
    with torch.no_grad():
        assert torch.equal(trained.model(torch.tensor(images)), model(torch.tensor(images)))


def test_neither_torch_nor_ray_comes_with_the_package_and_no_ray_with_a_model(run: Path) -> None:
    program = f"""
import sys
import voxray
assert "torch" not in sys.modules and "numpy" not in sys.modules
voxray.evaluate(voxray.load({str(run)!r}, device="cpu"))
assert "ray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
