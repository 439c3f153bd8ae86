"""The fMRI guide as it is written: its experiments, its tips, its keys, its commands.

What is asserted is in the guide's text ("Available Configurations", "Common Customizations", "Creating Custom
Configs", "Troubleshooting"), or, where it is silent, in DOMAINS.md S0.b.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from voxray.cli.arguments import experiment_and_overrides
from voxray.config.errors import InputError
from voxray.core.experiment import find_experiment, load_experiment
from voxray.tasks.fmri_clip.config import Config

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def config_of(name: str, *overrides: str) -> Config:
    config = load_experiment(name, overrides).config
    assert isinstance(config, Config)
    return config


def at(config: Config, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


# --- experiments

# name → the guide's words for it, in our paths
GUIDES: dict[str, dict[str, Any]] = {
    # "Linear regression with PCA preprocessing"; k, penalties and folds: S0.a
    "ridge_baseline": {
        "model.architecture": "ridge",
        "training.stepper": "closed_form",
        "training.closed_form.components": 3072,
        "training.closed_form.alphas": (0.1, 1, 10, 100, 1000, 10_000),
        "training.closed_form.folds": 5,
    },
    # "Single hidden layer (256-D)", "Dropout (0.1)", "Cosine learning rate schedule", "patience=10", "32"
    "mlp_standard": {
        "model.architecture": "mlp",
        "model.hidden_dims": (256,),
        "model.dropout": 0.1,
        "training.schedule": "cosine_epochs",
        "training.early_stopping": True,
        "training.patience": 10,
        "training.batch_size": 32,
        "training.epochs": 100,
        "training.weight_decay": 1e-4,
        "objective.mse": 0.5,
        "objective.cosine": 0.5,
    },
    # "4 residual blocks, 768-D latent", "Multi-layer supervision", "InfoNCE (weight 0.4)", "augmentation"
    "two_stage_sota": {
        "model.architecture": "two_stage",
        "model.n_blocks": 4,
        "model.latent_dim": 768,
        "model.layers": ("layer_4", "layer_8", "layer_12"),
        "objective.layer_weights": {"layer_4": 0.15, "layer_8": 0.2, "layer_12": 0.25, "final": 0.4},
        "objective.info_nce": 0.4,
        "objective.cosine": 0.3,
        "objective.mse": 0.3,
        "objective.tau": 0.05,
        "data.augmentation": True,
        "training.epochs": 150,
        "training.batch_size": 48,
    },
    # "Fast convergence"; S0.b's table
    "adapter_vitl14": {
        "model.architecture": "clip_adapter",
        "training.learning_rate": 3e-4,
        "training.weight_decay": 0.0,
        "training.batch_size": 256,
        "training.epochs": 50,
        "training.patience": 10,
        "objective.mse": 0.3,
        "objective.cosine": 0.7,
    },
    "clip2fmri": {
        "model.architecture": "clip2fmri",
        "model.inverse": "mlp",
        "model.inverse_dim": 1024,
        "model.dropout": 0.2,
        "training.learning_rate": 1e-3,
        "training.weight_decay": 1e-4,
        "training.batch_size": 256,
        "training.epochs": 50,
    },
    # "1,000 samples", "Epochs: 10"; Adam, MSE, batch and patience: S0.b
    "dev_fast": {
        "model.architecture": "mlp",
        "data.limit_samples": 1000,
        "data.path": "synth:tiny",
        "training.epochs": 10,
        "training.optimizer": "adam",
        "training.learning_rate": 1e-3,
        "training.batch_size": 32,
        "training.patience": 3,
        "training.clip_grad_norm": None,
        "objective.mse": 1.0,
        "objective.cosine": 0.0,
    },
}


@pytest.mark.parametrize("name", GUIDES)
def test_an_experiment_has_the_guides_values(name: str) -> None:
    config = config_of(f"fmri_clip/{name}")
    assert {path: at(config, path) for path in GUIDES[name]} == GUIDES[name]
    assert config.training.seed == 42
    judged_by = "val/voxel_r" if name == "clip2fmri" else "val/cosine_similarity"
    assert (config.training.monitor, config.training.monitor_mode) == (judged_by, "max")
    if name not in ("ridge_baseline", "dev_fast"):
        assert config.training.clip_grad_norm == 1.0


# S0.b: name → the lowest rate, the epochs of warm-up
@pytest.mark.parametrize(
    ("name", "lowest", "warm"),
    [("mlp_standard", 1e-6, 5), ("two_stage_sota", 5e-7, 10), ("adapter_vitl14", 1e-6, 3)],
)
def test_rates_rise_and_fall_as_upstreams(name: str, lowest: float, warm: int) -> None:
    training = config_of(name).training
    assert training.learning_rate * training.min_lr_fraction == pytest.approx(lowest, rel=0.02)
    assert round(training.epochs * training.warmup_fraction, 1) == warm


def test_the_deprecated_name_warns_and_is_the_same() -> None:
    old, new = config_of("sota_two_stage"), config_of("two_stage_sota")
    assert [text for text in old.told() if "deprecated" in text] == [
        "warning: sota_two_stage is deprecated: use two_stage_sota"
    ]
    assert new.told() == []
    named = {"experiment_name", "description", "deprecated"}
    assert old.model_dump(exclude=named) == new.model_dump(exclude=named)


# --- tips


def more(old: Any, new: Any) -> bool:
    return new > old


def less(old: Any, new: Any) -> bool:
    return new < old


def other(old: Any, new: Any) -> bool:
    return new != old


MLP, TWO, DEV = "mlp_standard", "two_stage_sota", "fmri_clip/dev_fast"
Way = Callable[[Any, Any], bool]

# The heading's words, the experiments that it speaks of, the override as it is typed, what moves, and how.
TIPS: list[tuple[str, tuple[str, ...], str, str, Way]] = [
    ("Increase capacity", (MLP, DEV), "model.hidden_dim=512", "model.hidden_dims", more),
    ("Increase model capacity", (TWO,), "model.latent_dim=1024", "model.latent_dim", more),
    ("Adjust learning rate", (MLP, TWO, DEV), "training.learning_rate=0.0005",
     "training.learning_rate", other),
    ("Reduced LR", (MLP,), "training.learning_rate=0.0005", "training.learning_rate", less),
    ("Reduce learning rate", (MLP, TWO), "training.learning_rate=0.00005", "training.learning_rate", less),
    ("Longer training", (MLP, TWO, DEV), "training.epochs=200", "training.epochs", more),
    ("Longer training", (MLP, TWO, DEV), "training.patience=20", "training.patience", more),
    ("Longer training", (MLP,), "training.epochs=150", "training.epochs", more),
    ("Higher quality (longer training)", (TWO,), "training.epochs=300", "training.epochs", more),
    ("Stronger regularization", (MLP, TWO), "model.dropout=0.2", "model.dropout", more),
    ("Stronger regularization", (TWO,), "training.weight_decay=0.0001", "training.weight_decay", more),
    ("Multi-GPU training", (TWO,), "training.distributed=true", "scale.most_workers", more),
    ("Larger batch size", (MLP, TWO, DEV), "training.batch_size=64", "training.batch_size", more),
    ("Reduce batch size", (MLP, TWO, DEV), "training.batch_size=16", "training.batch_size", less),
    ("Enable gradient accumulation", (MLP, TWO, DEV), "training.accumulate_grad_batches=2",
     "training.accumulate_grad_batches", more),
    ("Data augmentation", (MLP, DEV), "data.augmentation=true", "data.augmentation", more),
    ("Data augmentation", (TWO,), "data.noise_std=0.1", "data.noise_std", more),
    ("Mixed precision training", (MLP, TWO, DEV), "training.precision=16", "training.precision", other),
]  # fmt: skip


@pytest.mark.parametrize(
    ("heading", "name", "override", "path", "way"),
    [(heading, name, *rest) for heading, names, *rest in TIPS for name in names],
)
def test_a_tip_moves_its_value_the_way_its_heading_says(
    heading: str, name: str, override: str, path: str, way: Way
) -> None:
    assert way(at(config_of(name), path), at(config_of(name, override), path)), heading


def test_augmentation_adds_the_noise_that_the_tip_names() -> None:
    data = config_of(MLP, "data.augmentation=true", "data.noise_std=0.1").data
    assert (data.augmentation, data.noise_std) == (True, 0.1)
    assert config_of(MLP, "data.noise_std=0.1").told() == [
        "data.noise_std does nothing without data.augmentation=true"
    ]


def test_fewer_samples_are_fewer() -> None:
    assert config_of(MLP).data.limit_samples is None
    assert config_of(MLP, "data.limit_samples=5000").data.limit_samples == 5000


# "Creating Custom Configs", with the base that our files have.
CUSTOM = """\
_base_: {base}
model:
  architecture: mlp
  hidden_dim: 512
  dropout: 0.2
training:
  epochs: 150
  learning_rate: 0.0005
  batch_size: 64
"""


def test_the_guides_custom_file_loads(tmp_path: Path) -> None:
    base = ROOT / "experiments/fmri_clip/mlp_standard.yaml"
    (tmp_path / "base.yaml").write_text(base.read_text())
    (tmp_path / "mine.yaml").write_text(CUSTOM.format(base="base.yaml"))
    config = config_of(str(tmp_path / "mine.yaml"))
    assert (config.model.hidden_dims, config.model.dropout) == ((512,), 0.2)
    assert (config.training.epochs, config.training.learning_rate) == (150, 5e-4)


# --- keys

# As they are typed → our paths, of mlp_standard.
KEYS: list[tuple[str, dict[str, Any]]] = [
    ("model.hidden_dim=512", {"model.hidden_dims": (512,)}),
    ("model.hidden_dims=[2048, 1024]", {"model.hidden_dims": (2048, 1024)}),
    ("encoder.n_blocks=2", {"model.n_blocks": 2}),
    ("encoder.latent_dim=512", {"model.latent_dim": 512}),
    ("model.type=TwoStage", {"model.architecture": "two_stage"}),
    ("clip=vit_b32", {"model.clip": "vit_b32"}),
    ("model.clip=ViT-L/14", {"model.clip": "vit_l14"}),
    ("loss.mse_weight=0.2", {"objective.mse": 0.2}),
    ("loss.cosine_weight=0.2", {"objective.cosine": 0.2}),
    ("loss.info_nce_weight=0.2", {"objective.info_nce": 0.2}),
    ("info_nce_weight=0.2", {"objective.info_nce": 0.2}),
    ("training.loss.info_nce_weight=0.2", {"objective.info_nce": 0.2}),
    ("loss.temperature=0.1", {"objective.tau": 0.1}),
    ("loss.layer_weights={final: 1.0}", {"objective.layer_weights": {"final": 1.0}}),
    ("reliability_threshold=0.1", {"model.min_reliability": 0.1}),
    ("preprocessing.reliability_threshold=0.1", {"model.min_reliability": 0.1}),
    ("subject=subj01", {"data.filter": "subject == 'subj01'"}),
    ("data.subjects=[subj01, subj02]", {"data.filter": "subject in ['subj01', 'subj02']"}),
    ("subject=all", {"data.filter": ""}),
    ("dataset.max_samples=100", {"data.limit_samples": 100}),
    ("generation.n=4", {"generation.num_images": 4}),
    ("generation.num_inference_steps=20", {"generation.steps": 20}),
    ("generation.guidance_scale=5.0", {"generation.guidance": 5.0}),
    ("wandb_project=mine", {"logging.wandb.project": "mine", "logging.wandb.enabled": True}),
    ("logging.wandb_project=mine", {"logging.wandb.project": "mine", "logging.wandb.enabled": True}),
    ("tensorboard=true", {"logging.tensorboard": True}),
    ("training.precision=16", {"training.precision": "fp16"}),
    ("training.distributed=true", {"scale.num_workers": (1, 8)}),
    ("training.monitor=val_cosine_similarity", {"training.monitor": "val/cosine_similarity"}),
]


@pytest.mark.parametrize(("override", "ours"), KEYS, ids=[row[0] for row in KEYS])
def test_a_key_of_the_guide_means_what_it_says(override: str, ours: dict[str, Any]) -> None:
    resolved = load_experiment("mlp_standard", [override])
    assert isinstance(resolved.config, Config)
    assert {path: at(resolved.config, path) for path in ours} == ours
    moved = [path for path in ours if path != override.partition("=")[0]]
    assert all(any(path in note for note in resolved.notes) for path in moved if path in resolved.sources)


@pytest.mark.parametrize("key", ["model.output_dim=768", "model.layer_dims={final: 512}"])
def test_widths_are_the_datasets(key: str) -> None:
    with pytest.raises(InputError, match="widths are read from the dataset"):
        load_experiment("mlp_standard", [key])


@pytest.mark.parametrize("key", ["pca_k", "ridge.pca_k", "data.pca_k", "preprocessing.pca_k"])
def test_pca_is_ridges(key: str) -> None:
    assert config_of("ridge_baseline", f"{key}=256").training.closed_form.components == 256


# --- commands

COMMANDS = [
    ("--config configs/training/ridge_baseline.yaml --subject subj01", "ridge_baseline"),
    ("--config configs/training/mlp_standard.yaml --subject subj01", "mlp_standard"),
    ("--config configs/training/two_stage_sota.yaml --subject subj01", "two_stage_sota"),
    ("--config configs/training/dev_fast.yaml --subject subj01", "dev_fast"),
    ("--config configs/training/mlp_standard.yaml --subject subj01 --override model.hidden_dim=512",
     "mlp_standard"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "name"), COMMANDS)
def test_the_guides_commands_find_their_experiment_and_subject(typed: str, name: str) -> None:
    reference, overrides = experiment_and_overrides(None, typed.split())
    assert find_experiment(reference)[0] == ROOT / f"experiments/fmri_clip/{name}.yaml"
    config = config_of(reference, *overrides)
    assert (config.experiment_name, config.data.filter) == (name, "subject == 'subj01'")


def test_the_other_guides_folder_is_the_other_guides() -> None:
    found = find_experiment("configs/experiments/dev_fast.yaml")[0]
    assert found == ROOT / "experiments/cxr_memory/dev_fast.yaml"


def write_run(folder: Path, name: str) -> None:
    """A run's config, as it stands in its folder."""
    (folder / "config.json").parent.mkdir(parents=True)
    (folder / "config.json").write_text(
        '{"config": '
        + config_of(name, "model.latent_dim=32", "clip=vit_b32").model_dump_json()
        + ', "sources": {}}'
    )


@pytest.mark.parametrize("given", ["best.pt", "best", ""])
def test_an_adapter_takes_its_encoders_shape_from_its_run(tmp_path: Path, given: str) -> None:
    run = tmp_path / "fmri_clip" / "two_stage_sota"
    write_run(run, "two_stage_sota")
    typed = f"--config configs/training/adapter_vitl14.yaml --pretrained {run / given}"
    reference, overrides = experiment_and_overrides(None, typed.split())
    config = config_of(reference, *overrides)
    assert config.training.parts == {"encoder": str(run / given).removesuffix(".pt")}
    assert config.model.encoder is not None
    assert (config.model.encoder.latent_dim, config.model.encoder.clip) == (32, "vit_b32")
    assert config.missing() == []


def test_an_adapter_without_an_encoder_says_what_to_give() -> None:
    assert config_of("adapter_vitl14").missing() == [
        "the adapter stands on a trained encoder; name its run with training.parts.encoder=RUN (the guide's "
        "--pretrained RUN)"
    ]
    with pytest.raises(InputError, match="'checkpoints/two_stage/best' is no run, checkpoint or export"):
        config_of("adapter_vitl14", "pretrained=checkpoints/two_stage/best.pt")


# --- what does not fit together

WRONG: list[tuple[str, tuple[str, ...], str]] = [
    ("mlp_standard", ("clip=vit_l15",), "did you mean vit_l14"),
    ("mlp_standard", ("model.layers=[layer_4]",), "for two_stage, and architecture is mlp"),
    ("clip2fmri", ("model.layers=[layer_4]",), "further targets are for two_stage"),
    ("two_stage_sota", ("clip=vit_b32", "model.layers=[layer_13]"),
     "vit_b32 has the blocks 1 to 12, and no 'layer_13'"),
    ("two_stage_sota", ("model.layers=[layer_16]",), "no weight for layer_16, only for layer_4"),
    ("two_stage_sota", ("objective.brain_consistency=0.1",), "training.parts.brain=RUN"),
    ("clip2fmri", ("objective.brain_consistency=0.1",), "is for encoders that are trained"),
    ("mlp_standard", ("training.stepper=closed_form",), "closed_form solves model.architecture=ridge alone"),
    ("mlp_standard", ("pretrained=runs/x/best.pt",), "training.start_from=RUN"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_what_does_not_fit_is_refused_when_the_config_is_read(
    name: str, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises((InputError, ValidationError), match=message.replace("(", r"\(")):
        config_of(name, *overrides)


def test_infonce_over_accumulated_rows_says_its_price() -> None:
    (said,) = config_of(TWO, "training.accumulate_grad_batches=2").told()
    assert said == "objective.info_nce compares all 96 rows of an update, so each micro-batch runs twice"
    assert config_of(MLP, "training.accumulate_grad_batches=2").told() == []
