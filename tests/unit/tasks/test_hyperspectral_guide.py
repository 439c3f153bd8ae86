"""The hyperspectral guide as it is written: its table of models, its files' keys, its commands."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from voxray.cli.main import app
from voxray.core.experiment import default_config, load_experiment
from voxray.core.guide import read_guide
from voxray.tasks.hyperspectral.config import Config

ROOT = Path(__file__).resolve().parents[3]
# "Available Models": name → encoder layers, heads, width, decoder layers. The decoder's widths are ours.
TABLE = {
    "mae_tiny": (12, 3, 192, 8),
    "mae_small": (12, 6, 384, 8),
    "mae_base": (12, 12, 768, 8),
    "mae_medium": (16, 16, 512, 8),
    "mae_large": (24, 16, 1024, 8),
    "mae_huge": (32, 16, 1280, 8),
}
COMMAND = [
    "model=mae_large", "hparams.batch_size=2", "general.use_amp=true", "hparams.overfit_batches=1"
]  # fmt: skip

# the guide's key → {our path: value}
WORDS: list[tuple[str, dict[str, Any]]] = [
    ("model=mae_large", {"model.name": "mae_large"}),
    ("model=spectral_autoencoder", {"model.name": "spectral_autoencoder"}),
    ("loss=mae_spectral", {"objective.loss": "mae_spectral"}),
    ("loss=custom_loss", {"objective.loss": "spectralgpt"}),
    ("loss.mse_weight=2.0", {"objective.mse": 2.0}),
    ("loss.sam_weight=0.2", {"objective.sam": 0.2}),
    ("loss.variance_weight=0.02", {"objective.variance": 0.02}),
    ("loss.range_penalty_weight=0.002", {"objective.range_penalty": 0.002}),
    ("dataset=segmentation_dataset", {"data.path": ""}),
    ("dataset.csv_file=dataset.csv", {"data.prepare.table": "dataset.csv"}),
    ("dataset.transform_type=augment_basic", {"data.augment": "basic"}),
    ("dataset.normalize=true", {"data.normalize": True}),
    ("dataset.load_rgb=false", {"figures.load_rgb": False}),
    ("show_prediction=plot_rgb", {"figures.enabled": True}),
    ("show_prediction.nb_to_plot=6", {"figures.num_images": 6}),
    ("show_prediction.save_format=pdf", {"figures.format": "pdf"}),
    ("show_prediction.dpi=200", {"figures.dpi": 200}),
    ("strategy=dp", {"scale.strategy": "ddp"}),
    ("scale.strategy=dp", {"scale.strategy": "ddp"}),
    ("general.debug=true", {"training.debug": True}),
    ("hparams.valid_interval=5", {"training.validate_every.epochs": 5}),
    ("data.prepare.bands=[0, 2, 4]", {"data.prepare.bands": (0, 2, 4)}),
]
MODEL_FILE = """
model:
  _target_: models.spectral_gpt.mae_spectral.MAESpectral
  img_size: 500
  patch_size: [25, 5]
  in_chans: 30
  embed_dim: 512
  encoder_depth: 16
  encoder_num_heads: 16
  decoder_embed_dim: 256
  decoder_depth: 8
  decoder_num_heads: 8
  mask_ratio: 0.8
loss:
  _target_: losses.mae_spectral.MAESpectralLoss
  mse_weight: 1.0
dataset:
  _target_: dataset.segmentation_dataset.SegmentationDataset
  csv_file: dataset.csv
  transform_type: augment_basic
  normalize: true
  load_rgb: true
show_prediction:
  _target_: plots.plot_bottleneck.display_rgb
  nb_to_plot: 4
  save_format: png
  dpi: 150
"""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def config_of(name: str, *overrides: str) -> Config:
    config = load_experiment(f"experiments/hyperspectral/{name}.yaml", overrides).config
    assert isinstance(config, Config)
    return config


@pytest.mark.parametrize("name", TABLE)
def test_an_experiment_has_the_guides_model(name: str) -> None:
    config = config_of(name)
    shape = config.model.shape
    assert (shape.depth, shape.num_heads, shape.embed_dim, shape.decoder_depth) == TABLE[name]
    assert (config.model.patch_size, config.model.mask_ratio) == ((25, 5), 0.8)
    own = config.objective
    assert (own.loss, own.mse, own.sam, own.variance, own.range_penalty) == (
        "mae_spectral", 1.0, 0.1, 0.01, 0.001)  # fmt: skip
    training = config.training
    assert (training.epochs, training.validate_every.epochs, training.optimizer) == (200, 5, "adamw")
    if name == "mae_medium":
        assert (training.batch_size, training.accumulate_grad_batches) == (6, 1)


@pytest.mark.parametrize(("word", "ours"), WORDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_word_of_the_guide_is_ours(word: str, ours: dict[str, Any]) -> None:
    config = config_of("mae_medium", word)
    for path, expected in ours.items():
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part)
        assert value == expected, path


def test_the_guides_files_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "mae_medium.yaml"
    file.write_text(MODEL_FILE)
    guide = read_guide(file)
    assert guide is not None
    config = guide.resolved.config
    assert isinstance(config, Config)
    assert guide.unmapped == []
    assert (config.model.image_size, config.model.in_chans) == (500, 30)
    shape = config.model.shape
    assert (shape.embed_dim, shape.depth, shape.num_heads) == (512, 16, 16)
    assert (shape.decoder_dim, shape.decoder_depth, shape.decoder_heads) == (256, 8, 8)
    assert (config.figures.num_images, config.figures.format, config.figures.dpi) == (4, "png", 150)


def test_hydras_way_to_print_a_config_works() -> None:
    result = CliRunner().invoke(
        app, ["train", "experiments/hyperspectral/mae_medium.yaml", *COMMAND, "--cfg", "job"]
    )
    assert result.exit_code == 0, result.output
    shown = {line.split()[0]: line.split()[1] for line in result.output.splitlines() if len(line.split()) > 1}
    assert (shown["name"], shown["precision"], shown["overfit_batches"]) == ("mae_large", "bf16", "1")


def test_what_is_always_computed_is_told() -> None:
    with pytest.raises(Exception, match="all metrics are always computed"):
        config_of("mae_medium", "metric=mse")


def test_the_variance_alone_compares_rows() -> None:
    assert config_of("mae_medium").global_terms() == ("variance",)
    assert config_of("mae_medium", "objective.variance=0").global_terms() == ()
    assert default_config("hyperspectral", {"objective.loss": "spectralgpt"}, "").config.global_terms() == ()
