"""Backbones: any timm name, weights from a file beside those they were saved from, gradient checkpointing."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from voxray.config.errors import InputError
from voxray.core.schema import Column, Schema
from voxray.tasks.cxr_memory.backbone import build_backbone
from voxray.tasks.cxr_memory.config import LABELS, Config, MemoryConfig, ModelConfig
from voxray.tasks.cxr_memory.model import CxrClassifier
from voxray.tasks.cxr_memory.task import CxrMemory
from voxray.train.trained.load import _without_download

NAME = "test_resnet"


@pytest.fixture(scope="module")
def source():
    """A model as timm's hub has it: three input channels, a classifier of 1,000 classes."""
    torch.manual_seed(3)
    return timm.create_model(NAME).eval()


def saved(folder, weights, suffix):
    file = folder / f"weights{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    return str(file)


def model_of(file: str, **values) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": NAME, "pretrained_file": file, **values})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_files_weights_are_the_models(source, tmp_path, suffix, nested):
    """Of training programs: `model.` in DDP's spelling below `state_dict`; safetensors are flat."""
    weights = source.state_dict()
    if nested and suffix != ".safetensors":
        weights = {"state_dict": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}
    built = build_backbone(model_of(saved(tmp_path, weights, suffix), in_chans=3), None)
    images = torch.randn(2, 3, 32, 32)
    expected = source.forward_head(source.forward_features(images), pre_logits=True)
    torch.testing.assert_close(built.module.eval()(images), expected)
    assert built.mean == source.pretrained_cfg["mean"]
    assert "state_dict" not in built.module.pretrained_cfg


def test_grey_images_are_seen_as_three_equal_channels(tmp_path):
    """The three kernels are added up, and grey is normalised by the mean of the three channels' numbers."""
    name = "mobilenetv3_small_050"
    source = timm.create_model(name).eval()
    file = saved(tmp_path, source.state_dict(), ".safetensors")
    config = ModelConfig(backbone=name, pretrained_file=file)
    model = CxrClassifier(config, MemoryConfig(), len(LABELS), 0.1, 0.9).eval()
    assert source.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert model.mean_C.tolist() == pytest.approx([0.449])
    assert model.std_C.tolist() == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    grey = torch.randn(2, 1, 32, 32)
    expected = source.forward_head(source.forward_features(grey.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(model.backbone(grey), expected, atol=1e-4, rtol=1e-4)


def test_without_pretrained_weights_pixels_are_normalised_by_the_training_rows():
    model = CxrClassifier(ModelConfig(backbone=NAME, in_chans=3), MemoryConfig(), len(LABELS), 0.1, 0.9)
    assert model.mean_C.tolist() == pytest.approx([0.1] * 3)
    assert model.std_C.tolist() == pytest.approx([0.9] * 3)


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        (None, ".pth", "there is no file"),
        (None, ".onnx", "is no .safetensors, .pth"),
        ("text", ".safetensors", "holds no weights that can be read"),
        ("text", ".pth", "holds no weights that can be read"),
        ("pickle", ".pth", "without running code"),
        ("list", ".pth", "holds no weights that can be read"),
        ("other", ".safetensors", r"(lacks conv1|do not fit 'test_resnet').*its own begin with"),
        ("part", ".safetensors", r"lacks layer1\.0\.conv1\.weight of 'test_resnet'"),
        ("ours", ".safetensors", "voxray model: name it in training.start_from"),
        ("wider", ".safetensors", "do not fit 'test_resnet'"),
    ],
)
def test_a_file_that_does_not_do_is_an_input_error(source, tmp_path, content, suffix, message):
    weights = dict(source.state_dict())
    file = tmp_path / f"weights{suffix}"
    match content:
        case "text":
            file.write_text("these are no weights")
        case "pickle":
            torch.save({"state_dict": weights, "path": tmp_path}, file)
        case "list":
            torch.save([1, 2], file)
        case "other":
            save_file(timm.create_model("test_vit").state_dict(), file)
        case "part":
            del weights["layer1.0.conv1.weight"]
            save_file(weights, file)
        case "ours":
            save_file({f"backbone.{name}": value for name, value in weights.items()}, file)
        case "wider":
            weights["conv1.0.weight" if "conv1.0.weight" in weights else "conv1.weight"] = torch.ones(
                99, 3, 3, 3
            )
            save_file(weights, file)
    with pytest.raises(InputError, match=message) as caught:
        build_backbone(model_of(str(file)), None)
    assert "\n" not in str(caught.value)


def test_a_trained_run_needs_its_file_no_more(source, tmp_path):
    config = Config.model_validate({"model": model_of(str(tmp_path / "gone.pth")).model_dump()})
    task = _without_download(CxrMemory(config))
    assert task.config.model.pretrained_file == ""
    task.build_model()


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "mobilenetv3_small_050", NAME])
def test_any_timm_name_takes_the_datas_images(name):
    """Transformers are built for one size: that of the data; the features are as wide as is said."""
    built = build_backbone(ModelConfig(backbone=name), 64)
    assert built.module(torch.randn(2, 1, 64, 64)).shape == (2, built.dim)


def test_the_size_is_that_of_the_prepared_rows():
    shape = Column("uint8", (1, 48, 48))
    schema = Schema({"sample_id": Column("text"), "image": shape, "patient_id": Column("text")}, "patient_id")
    config = Config.model_validate({"model": {"backbone": "test_vit"}})
    model = CxrMemory(config, schema=schema).build_model()
    assert model(torch.zeros(2, 1, 48, 48, dtype=torch.uint8)).shape == (2, len(LABELS))


def test_a_size_that_a_model_cannot_take_is_an_input_error():
    """One is built for 224 pixels whatever it is told, the other's layers leave nothing of 4."""
    for name, side, own in (("efficientformer_l1", 64, 224), ("dla46_c", 4, 224)):
        with pytest.raises(InputError, match=f"cannot take images of {side} pixels.*image_size={own}"):
            build_backbone(ModelConfig(backbone=name), side)


def test_no_checkpointing_where_timm_has_none():
    with pytest.raises(InputError, match="timm's 'dla46_c' does not offer it"):
        build_backbone(ModelConfig(backbone="dla46_c", grad_checkpointing=True), None)
    assert math.isfinite(build_backbone(ModelConfig(backbone=NAME, grad_checkpointing=True), None).dim)
