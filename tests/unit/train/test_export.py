"""An export gives the same numbers where it is read: by voxray, torch alone, safetensors, onnxruntime."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import voxray
from saved_run import begin_run, save_weights
from voxray.config.errors import InputError, RunError
from voxray.core.schema import Column, Schema
from voxray.tasks.cxr_memory.config import Config as CxrConfig
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.testing.datasets import write_dataset
from voxray.testing.tiny import Tiny, TinyConfig, tiny_rows
from voxray.train.trained import export as export_module
from voxray.train.trained.example import example_batch, made_columns
from voxray.train.trained.export import export, format_of, largest_difference, tensors_of
from voxray.train.trained.load import Trained

ROWS = tiny_rows(50, 2)


@pytest.fixture
def config(tmp_path: Path) -> TinyConfig:
    schema = Tiny(TinyConfig()).schema()
    dataset = write_dataset(tmp_path / "dataset", schema, {"train": tiny_rows(40, 1), "val": ROWS}, 30)
    return TinyConfig.model_validate({"data": {"path": str(dataset)}, "model": {"batch_norm": True}})


@pytest.fixture
def model(config: TinyConfig) -> nn.Module:
    torch.manual_seed(3)
    made = Tiny(config).build_model()
    made(torch.randn(64, 6))  # moves BatchNorm's statistics
    return made.eval()


@pytest.fixture
def trained(config: TinyConfig, model: nn.Module, tmp_path: Path) -> Trained:
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 7, model, is_best=True)
    return voxray.load(run.path, device="cpu")


def given(num_rows: int) -> torch.Tensor:
    return torch.tensor(ROWS["x"][:num_rows])


def test_a_folder_is_all_that_load_needs(trained: Trained, model: nn.Module, tmp_path: Path) -> None:
    done = export(trained, tmp_path / "out")
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "dataset")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    names = {"model.safetensors", "config.json", "dataset.json", "MANIFEST.json"}
    assert {file.name for file in moved.iterdir()} == names
    assert done.num_bytes == sum(file.stat().st_size for file in moved.iterdir())
    read = load_file(moved / "model.safetensors")  # the library's own reader
    assert all(torch.equal(read[name], value) for name, value in model.state_dict().items())
    assert read.keys() == model.state_dict().keys()
    again = voxray.load(moved, device="cpu")
    assert (again.config, again.facts, again.stage) == (trained.config, trained.facts, trained.stage)
    assert torch.equal(again.model(given(5)), model(given(5)))
    other = write_dataset(tmp_path / "other", Tiny(TinyConfig()).schema(), {"val": ROWS}, 30)
    assert voxray.evaluate(again, other)["num_rows"] == 50


def test_an_export_is_exported_again_and_started_from(trained: Trained, model, tmp_path: Path) -> None:
    from voxray.train.checkpoints.weights import read_weights, resolve

    export(trained, tmp_path / "one")
    export(voxray.load(tmp_path / "one"), tmp_path / "two")
    found = resolve(str(tmp_path / "two"), tmp_path, tmp_path, [])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in read_weights(found).items())


def test_averaged_weights_are_what_is_exported(config, model, tmp_path: Path) -> None:
    run = begin_run(tmp_path / "averaged", config)
    save_weights(run, config, 7, Tiny(config).build_model(), ema=model)
    export(voxray.load(run.path, device="cpu"), tmp_path / "out.pt")
    saved = torch.load(tmp_path / "out.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_pt_has_the_guides_keys_and_no_pickle(trained: Trained, model: nn.Module, tmp_path: Path) -> None:
    export(trained, tmp_path / "best_model.pt")
    checkpoint = torch.load(tmp_path / "best_model.pt", weights_only=True)
    assert checkpoint.keys() == {"model_state_dict", "config"}
    other = Tiny(trained.config).build_model()
    other.load_state_dict(checkpoint["model_state_dict"])  # as the guides do
    assert torch.equal(other.eval()(given(5)), model(given(5)))
    assert TinyConfig.model_validate(checkpoint["config"]) == trained.config


def test_torch_export_runs_without_voxray_on_any_number_of_rows(trained, model, tmp_path: Path) -> None:
    done = export(trained, tmp_path / "model.pt2")
    assert done.difference is not None
    assert done.difference <= 1e-6
    assert (done.num_rows, done.is_real) == (8, True)
    for num_rows in (1, 2, 31):
        torch.save({"x": given(num_rows), "y": model(given(num_rows)).detach()}, tmp_path / f"{num_rows}.pt")
    program = f"""
import sys, torch
program = torch.export.load({str(tmp_path / "model.pt2")!r}).module()
for num_rows in (1, 2, 31):
    pair = torch.load(f"{tmp_path}/{{num_rows}}.pt", weights_only=True)
    torch.testing.assert_close(program(pair["x"]), pair["y"])
assert "voxray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_onnx_runs_in_onnxruntime_on_any_number_of_rows(trained, model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    done = export(trained, tmp_path / "model.onnx")
    assert done.difference is not None
    assert done.difference <= 1e-5
    assert [file.name for file in tmp_path.glob("model.onnx*")] == ["model.onnx"]  # one file
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    name = session.get_inputs()[0].name
    for num_rows in (1, 2, 31):
        found = session.run(None, {name: given(num_rows).numpy()})[0]
        np.testing.assert_allclose(found, model(given(num_rows)).detach().numpy(), rtol=1e-4, atol=1e-5)
    text = session.get_modelmeta().custom_metadata_map["voxray.config"]
    assert TinyConfig.model_validate_json(text) == trained.config


def test_large_weights_lie_beside_an_onnx_file(trained, tmp_path: Path, monkeypatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    monkeypatch.setattr(export_module, "ONE_FILE_BYTES", 1)
    (tmp_path / "model.onnx.data").write_text("mine")
    with pytest.raises(InputError, match=r"model\.onnx\.data exists"):
        export(trained, tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").unlink()
    export(trained, tmp_path / "model.onnx")
    assert {file.name for file in tmp_path.glob("model.onnx*")} == {"model.onnx", "model.onnx.data"}


def test_without_the_extra_onnx_says_how_to_get_it(trained, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs onnx, onnxscript, onnxruntime; pip install 'voxray\[export\]'"
    ):
        export(trained, tmp_path / "model.onnx")


def test_radiographs_are_traced_on_made_up_rows_where_the_dataset_is_gone(tmp_path: Path) -> None:
    values = {"data": {"path": str(tmp_path / "xrays")}, "model": {"backbone": "test_efficientnet"}}
    config = CxrConfig.model_validate(values)
    schema = Schema(
        {**CxrMemory(config).schema().columns, "image": Column("uint8", (1, 32, 32))}, "patient_id"
    )
    rows = {name: value for name, value in made_columns(schema, 4).items() if name in schema.columns}
    write_dataset(tmp_path / "xrays", schema, {"test": rows}, 4, {"image": {"mean": 0.4, "std": 0.2}})
    torch.manual_seed(0)
    run = begin_run(tmp_path / "run", config)
    save_weights(run, config, 7, CxrMemory(config, {"image": {"mean": 0.4, "std": 0.2}}).build_model())
    trained = voxray.load(run.path, device="cpu")
    assert example_batch(trained, 8)[1]
    shutil.rmtree(tmp_path / "xrays")
    done = export(trained, tmp_path / "cxr.pt2")
    assert not done.is_real
    assert done.difference is not None
    assert done.difference <= 1e-4
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "cxr.pt2").module()(images)
        torch.testing.assert_close(found, trained.model(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"nowhere' is no dataset"):
        export(trained, tmp_path / "again.pt2", data=tmp_path / "nowhere")


def test_what_is_read_back_wrong_is_not_kept(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    good = torch.export.load

    def damaged(path):
        program = good(path)
        with torch.no_grad():
            next(iter(program.state_dict.values())).add_(0.01)
        return program

    monkeypatch.setattr(torch.export, "load", damaged)
    with pytest.raises(
        RunError, match=r"read back of model\.pt2 differs from the model by .*, more than 0\.0001"
    ):
        export(trained, tmp_path / "model.pt2")
    assert not list(tmp_path.glob("*model.pt2*"))


def test_an_export_of_one_size_alone_is_not_kept(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export_module, "_dynamic", lambda inputs: None)
    with pytest.raises(
        RunError, match=r"^what was read back of m\.pt2 does not run on another number of rows: "
    ):
        export(trained, tmp_path / "m.pt2")
    assert not list(tmp_path.glob("*m.pt2*"))


def test_what_exists_is_never_overwritten(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "model.pt").write_text("mine")
    for name in ("out", "model.pt"):
        with pytest.raises(InputError, match=rf"{name} exists and is never overwritten"):
            export(trained, tmp_path / name)
    assert (tmp_path / "model.pt").read_text() == "mine"
    assert not list((tmp_path / "out").iterdir())


def test_a_forward_that_cannot_be_traced_is_one_sentence(trained: Trained, tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    branching = Trained(**{**vars(trained), "model": Branching()})
    with pytest.raises(RunError, match=r"^the model's forward cannot be traced as torch_export: [^\n]+$"):
        export(branching, tmp_path / "model.pt2")
    assert not list(tmp_path.glob("*model.pt2*"))


def test_a_task_without_example_inputs_says_so(trained: Trained, tmp_path: Path, monkeypatch) -> None:
    from voxray.core.task import Task

    monkeypatch.setattr(Tiny, "example_inputs", Task.example_inputs)
    with pytest.raises(InputError, match="does not offer a forward pass on tensors"):
        export(trained, tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [("a", None, "safetensors"), ("a.pt", None, "pt"), ("a.pth", None, "pt"), ("a.pt2", None, "torch_export"),
     ("a.onnx", None, "onnx"), ("a.pt", "onnx", "onnx"), ("v1.2", None, "safetensors")],
)  # fmt: skip
def test_the_ending_names_the_format(name: str, asked, expected: str) -> None:
    assert format_of(Path(name), asked) == expected


def test_a_folder_is_not_called_like_a_file() -> None:
    with pytest.raises(InputError, match=r"OUT is a folder that holds model\.safetensors"):
        format_of(Path("model.safetensors"), None)


def test_the_difference_is_the_largest_share_and_shapes_count() -> None:
    x = (torch.arange(8.0)[:, None],)

    def ours(inputs):
        return [inputs[0] * 10]

    assert largest_difference(ours, ours, x) == 0
    assert largest_difference(ours, lambda inputs: [inputs[0] * 10 + 0.7], x) == pytest.approx(
        0.7
    )  # one row: 0
    assert largest_difference(ours, lambda inputs: [inputs[0][:1] * 10], x) == float("inf")
    assert largest_difference(ours, lambda inputs: [inputs[0] * float("nan")], x) == float("inf")
    nan = [torch.tensor([float("nan"), float("inf")])]
    assert largest_difference(lambda _: nan, lambda _: nan, x) == 0


def test_outputs_of_any_nesting_are_compared_in_order() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert [t.shape for t in tensors_of({"a": a, "rest": (b, None, [c])})] == [(1,), (1,), (2,)]
