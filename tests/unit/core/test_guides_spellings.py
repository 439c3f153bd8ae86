"""What the users' five guides write about training, tracking, checkpoints and devices works as they write it.

Each line is one of a guide's own (DOMAINS.md section 0 names them); its meaning is the guide's sentence.
"""

from pathlib import Path
from typing import Any

import pytest

from voxray.config.errors import InputError
from voxray.core.experiment import default_config, load_experiment
from voxray.core.guide import read_guide

FMRI, TEXT, RETINA, MINDEYE, CXR = "fmri_clip", "brain_text", "hyperspectral", "mindeye", "cxr_memory"

# (the guide's task, its command-line override, {our path: value})
OVERRIDES: list[tuple[str, str, dict[str, Any]]] = [
    # fmri2img: training configurations
    (FMRI, "training.learning_rate=0.0005", {"training.learning_rate": 0.0005}),
    (FMRI, "training.epochs=200", {"training.epochs": 200}),
    (FMRI, "training.patience=20", {"training.patience": 20, "training.early_stopping": False}),
    (FMRI, "training.weight_decay=0.0001", {"training.weight_decay": 0.0001}),
    (FMRI, "training.distributed=true", {"scale.num_workers": (1, 8)}),
    (FMRI, "training.distributed=false", {"scale.num_workers": 1}),
    (FMRI, "training.batch_size=64", {"training.batch_size": 64}),
    (FMRI, "training.accumulate_grad_batches=2", {"training.accumulate_grad_batches": 2}),
    (FMRI, "data.limit_samples=5000", {"data.limit_samples": 5000}),
    (FMRI, "training.precision=16", {"training.precision": "fp16"}),
    (FMRI, "training.precision=16-mixed", {"training.precision": "fp16"}),
    (FMRI, "training.precision=bf16-mixed", {"training.precision": "bf16"}),
    (FMRI, "training.precision=bf16", {"training.precision": "bf16"}),
    (FMRI, "training.precision=32", {"training.precision": "fp32"}),
    (FMRI, "training.mixed_precision=true", {"training.precision": "bf16"}),
    (FMRI, "training.gradient_clip=0.5", {"training.clip_grad_norm": 0.5}),
    (FMRI, "training.gradient_clip=null", {"training.clip_grad_norm": None}),
    (FMRI, "training.gradient_clip=0", {"training.clip_grad_norm": None}),
    (FMRI, "training.accumulation_steps=2", {"training.accumulate_grad_batches": 2}),
    (FMRI, "training.lr_scheduler=cosine", {"training.schedule": "cosine_epochs"}),
    (FMRI, "training.lr_scheduler=none", {"training.schedule": "constant"}),
    (FMRI, "training.early_stop_patience=3", {"training.patience": 3, "training.early_stopping": True}),
    (FMRI, "training.optimizer=AdamW", {"training.optimizer": "adamw"}),
    (FMRI, "training.optimizer=torch.optim.SGD", {"training.optimizer": "sgd"}),
    (FMRI, "training.optimizer={name: adam, lr: 0.01, betas: [0.8, 0.99]}",
     {"training.optimizer": "adam", "training.learning_rate": 0.01, "training.betas": (0.8, 0.99)}),
    (FMRI, "training.device=cpu", {"scale.gpus_per_worker": 0}),
    (FMRI, "training.device=cuda", {"scale.gpus_per_worker": "auto"}),
    (FMRI, "output.save_every_n_epochs=5", {"checkpoints.save_every_n_epochs": 5}),
    (FMRI, "evaluation.eval_interval=2", {"training.validate_every.epochs": 2}),
    (FMRI, "ridge.alpha_range=[0.1, 1.0]",
     {"training.closed_form.alphas": (0.1, 1.0), "training.stepper": "closed_form"}),
    (FMRI, "ridge.cv_folds=4", {"training.closed_form.folds": 4}),
    # brain-to-text: training_args.yaml
    (TEXT, "lr_max=0.005", {"training.learning_rate": 0.005}),
    (TEXT, "lr_warmup_steps=1000", {"training.warmup_steps": 1000}),
    (TEXT, "num_training_batches=120000", {"training.steps": 120000}),
    (TEXT, "lr_scheduler_type=cosine", {"training.schedule": "cosine"}),  # per step there
    (TEXT, "grad_norm_clip_value=10", {"training.clip_grad_norm": 10.0}),
    (TEXT, "use_amp=true", {"training.precision": "bf16"}),  # "AMP (bfloat16)"
    (TEXT, "dataset.batch_size=64", {"training.batch_size": 64}),
    (TEXT, "dataset.days_per_batch=4", {"data.groups_per_batch": 4, "data.group_by": "session"}),
    (TEXT, "early_stopping=true", {"training.early_stopping": True}),
    (TEXT, "early_stopping_val_steps=7", {"training.patience": 7, "training.early_stopping": True}),
    (TEXT, "batches_per_val_step=2000", {"training.validate_every.steps": 2000}),
    (TEXT, "batches_per_train_log=200", {"logging.log_every_n_steps": 200}),
    (TEXT, "seed=10", {"training.seed": 10}),
    (TEXT, "use_multi_gpu=False", {"scale.num_workers": 1}),
    (TEXT, "alpha=2.0", {"objective.alpha": 2.0}),
    (TEXT, "beta=0.5", {"objective.beta": 0.5}),
    (TEXT, "lr_max_day=0.002", {"training.parameters": {"day_*": {
        "learning_rate": 0.002, "min_lr_fraction": None, "warmup_steps": None, "weight_decay": None,
        "freeze": None}}}),
    (TEXT, "dataset.data_transforms.white_noise_std=1.0", {"data.transforms.white_noise_std": 1.0}),
    (TEXT, "dataset.data_transforms.smooth_kernel_std=2", {"data.transforms.smooth_kernel_std": 2.0}),
    (TEXT, "dataset.data_transforms.random_cut=3", {"data.transforms.random_cut": 3}),
    (TEXT, "model.input_network.input_layer_dropout=0.2", {"model.input_dropout": 0.2}),
    # hyperspectral MAE: model training module
    (RETINA, "hparams.batch_size=4", {"training.batch_size": 4}),
    (RETINA, "hparams.epochs=100", {"training.epochs": 100}),
    (RETINA, "hparams.nb_epochs=200", {"training.epochs": 200}),
    (RETINA, "hparams.valid_interval=5", {"training.validate_every.epochs": 5}),
    (RETINA, "hparams.accumulate_grad_batches=4", {"training.accumulate_grad_batches": 4}),
    (RETINA, "hparams.overfit_batches=1", {"training.overfit_batches": 1}),
    (RETINA, "general.use_amp=true", {"training.precision": "bf16"}),
    (RETINA, "general.use_amp=false", {"training.precision": "fp32"}),
    (RETINA, "general.debug=true", {"training.debug": True}),
    (RETINA, "general.num_workers=16", {"data.read_threads": 16}),
    (RETINA, "general.device_ids=[0, 1, 2]", {"scale.num_workers": 3}),
    (RETINA, "general.experiment_name=custom_experiment", {"experiment_name": "custom_experiment"}),
    (RETINA, "mlflow.tags.version=v1.0",
     {"logging.mlflow.tags": {"version": "v1.0"}, "logging.mlflow.enabled": True}),
    (RETINA, "optimizer=adamw", {"training.optimizer": "adamw"}),
    (RETINA, "scheduler=cosine", {"training.schedule": "cosine_epochs"}),
    # fMRI-reconstruction-NSD: train_combined.py
    (MINDEYE, "batch_size=64", {"training.batch_size": 64}),
    (MINDEYE, "num_epochs=60", {"training.epochs": 60}),
    (MINDEYE, "max_lr=3e-4", {"training.learning_rate": 3e-4}),
    (MINDEYE, "lr_scheduler=cycle", {"training.schedule": "one_cycle"}),
    (MINDEYE, "lr_scheduler=fixed", {"training.schedule": "constant"}),
    (MINDEYE, "wandb_log=True", {"logging.wandb.enabled": True}),
    (MINDEYE, "wandb_project=laion-fmri", {"logging.wandb.project": "laion-fmri"}),
    (MINDEYE, "first_batch=True", {"training.overfit_batches": 1}),
    (MINDEYE, "ckpt_interval=10", {"checkpoints.save_every_n_epochs": 10}),
    # what a Lightning user types
    (CXR, "trainer.max_epochs=3", {"training.epochs": 3}),
    (CXR, "trainer.devices=2", {"scale.num_workers": 2}),
    (CXR, "trainer.gradient_clip_val=0.5", {"training.clip_grad_norm": 0.5}),
    (CXR, "trainer.log_every_n_steps=5", {"logging.log_every_n_steps": 5}),
    (CXR, "checkpoint.save_top_k=3", {"checkpoints.keep": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("task", "override", "ours"), OVERRIDES, ids=[row[1] for row in OVERRIDES])
def test_a_guides_override_means_what_the_guide_says(
    task: str, override: str, ours: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "e.yaml").write_text(f"task: {task}\n")
    resolved = load_experiment(str(tmp_path / "e.yaml"), [override])
    assert values_at(resolved.config.model_dump(), ours) == ours
    given = override.partition("=")[0]
    moved = [path for path in ours if path != given and resolved.sources.get(path) == "command line"]
    assert all(any(path in note for note in resolved.notes) for path in moved), resolved.notes


def values_at(config: dict[str, Any], paths: dict[str, Any]) -> dict[str, Any]:
    def value(path: str) -> Any:
        found: Any = config
        for part in path.split("."):
            found = found[part]
        return found

    return {path: value(path) for path in paths}


# The blocks of the fMRI guide's "Best Practices", one file.
BEST_PRACTICES = """\
task: fmri_clip
training:
  seed: 42
  deterministic: true
  early_stopping: true
  patience: 10
  monitor: val_cosine_similarity
checkpoints:
  save_best: true
  save_last: true
  save_every_n_epochs: 10
logging:
  log_every_n_steps: 100
  wandb_project: fmri2img
  tensorboard: true
"""


def test_the_fmri_guides_best_practices_are_a_file_that_loads(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(BEST_PRACTICES)
    config = load_experiment(str(tmp_path / "e.yaml")).config
    training, logging = config.training, config.logging
    assert (training.seed, training.deterministic) == (42, True)
    assert (training.early_stopping, training.patience) == (True, 10)
    assert (training.monitor, training.monitor_mode) == ("val/cosine_similarity", "max")
    assert (config.checkpoints.save_best, config.checkpoints.save_every_n_epochs) == (True, 10)
    assert (logging.log_every_n_steps, logging.tensorboard) == (100, True)
    assert (logging.wandb.enabled, logging.wandb.project) == (True, "fmri2img")


@pytest.mark.parametrize(
    ("theirs", "ours", "mode"),
    [
        ("val_cosine_similarity", "val/cosine_similarity", "max"),
        ("val_loss", "val/loss", "min"),
        ("valid_loss", "val/loss", "min"),  # fastai's name
        ("val_wer", "val/wer", "min"),
        ("val_auroc", "val/auroc", "max"),
        ("train_loss", "train/loss", "min"),
    ],
)
def test_a_monitor_spelled_with_an_underscore_is_the_reported_name(theirs: str, ours: str, mode: str) -> None:
    for value in (theirs, ours):
        training = default_config("cxr_memory", {"training.monitor": value}, "here").config.training
        assert training.monitor == ours
    spelled = default_config("cxr_memory", {"training.monitor": theirs}, "here").config.training
    assert spelled.monitor_mode == mode
    values = {"training.monitor": theirs, "training.monitor_mode": "min"}
    assert default_config("cxr_memory", values, "here").config.training.monitor_mode == "min"


@pytest.mark.parametrize(
    "key", ["training.early_stopping", "early_stopping", "hparams.early_stopping", "stages.1.early_stopping"]
)
def test_early_stopping_may_be_a_section(key: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("task: cxr_memory\nstages: [{}, {}]\n")
    section = "{monitor: val_cosine_similarity, patience: 4, mode: max, min_delta: 0.001}"
    config = load_experiment(str(tmp_path / "e.yaml"), [f"{key}={section}"]).config
    training = config.resolved_stages()[1].training
    assert (training.early_stopping, training.patience, training.min_delta) == (True, 4, 0.001)
    assert (training.monitor, training.monitor_mode) == ("val/cosine_similarity", "max")


@pytest.mark.parametrize(
    ("task", "override", "mend"),
    [
        (FMRI, "training.min_lr=1e-6", "write training.min_lr_fraction"),
        (FMRI, "training.warmup_epochs=5", "write training.warmup_fraction"),
        (FMRI, "ridge.alpha=1000", r"write training\.closed_form\.alphas"),
        (TEXT, "lr_min=0.0001", "write training.min_lr_fraction, lr_min / lr_max"),
        (CXR, "training.freeze_epochs=3", "write a stage of its own before this one"),
        (CXR, "stages.1.min_lr=2e-5", "write training.min_lr_fraction"),
        (CXR, "training.fast_dev_run=true", "--fast-dev-run"),
    ],
)
def test_what_one_key_cannot_say_names_the_mend(task: str, override: str, mend: str, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"task: {task}\nstages: [{{}}, {{}}]\n")
    with pytest.raises(InputError, match=rf"command line: {override.partition('=')[0]}: .*{mend}"):
        load_experiment(str(tmp_path / "e.yaml"), [override])


# The chest X-ray guide's phases (DOMAINS.md S4.c).
PHASES = """\
experiment_name: memory_rarity_effv2s
phase1: {filter_normal: true, batch_size: 64, num_workers: 4, loss: bce, freeze_epochs: 3, total_epochs: 20,
  use_lr_finder: true, optimizer: adam, lr: 0.0001, weight_decay: 0.01, early_stopping_patience: 5,
  save_best: true, min_delta: 0.0001}
phase2: {batch_size: 128, epochs: 5, lr_max: 0.00008, memory_momentum: 0.9999, load_from_phase1: true}
"""
MAIN_CONFIG = """\
hparams: {epochs: 200, batch_size: 6, valid_interval: 5, accumulate_grad_batches: 1}
general: {device_ids: [0, 1, 2], num_workers: 8}
"""
TRAINING_ARGS = """\
model: {n_units: 768}
dataset: {batch_size: 64, days_per_batch: 4}
num_training_batches: 120000
lr_max: 0.005
lr_min: 0.0001
lr_warmup_steps: 1000
lr_max_day: 0.005
"""
RIDGE = """\
experiment: {name: ridge_baseline, tags: [baseline]}
dataset: {subject: subj01, val_ratio: 0.1, test_ratio: 0.1, train_ratio: 0.8}
ridge: {alpha: 1000.0, alpha_range: [0.1, 1000.0], cv_folds: 5}
"""


@pytest.mark.parametrize(
    ("text", "task", "ours", "unmapped"),
    [
        (PHASES, CXR, {"data.read_threads": 4, "checkpoints.save_best": True, "data.filter": "any(labels)"},
         set()),
        (MAIN_CONFIG, RETINA, {"training.batch_size": 6, "training.validate_every.epochs": 5,
                               "scale.num_workers": 3, "data.read_threads": 8}, set()),
        (TRAINING_ARGS, TEXT, {"training.steps": 120000, "training.learning_rate": 0.005,
                               "training.warmup_steps": 1000, "data.groups_per_batch": 4,
                               "model.n_units": 768},
         {"lr_min"}),
        (RIDGE, FMRI, {"training.stepper": "closed_form", "training.closed_form.alphas": (0.1, 1000.0),
                       "data.prepare.splits.val": 0.1, "experiment_name": "ridge_baseline"}, {"ridge.alpha"}),
    ],
    ids=["phases", "hydra", "training_args", "ridge"],
)  # fmt: skip
def test_a_guides_file_is_shown_in_our_words(
    text: str, task: str, ours: dict[str, Any], unmapped: set[str], tmp_path: Path
) -> None:
    (tmp_path / "old.yaml").write_text(text)
    guide = read_guide(tmp_path / "old.yaml")
    assert guide is not None
    config = guide.resolved.config
    assert config.task == task
    assert values_at(config.model_dump(), ours) == ours
    assert {left.key for left in guide.unmapped} == unmapped
    assert all(left.reason for left in guide.unmapped)


def test_the_phases_of_the_chest_guide_are_stages(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(PHASES)
    guide = read_guide(tmp_path / "old.yaml")
    assert guide is not None
    stages = guide.resolved.config.resolved_stages()
    frozen, first, second = (stage.training for stage in stages)
    for training in (frozen, first):
        assert (training.batch_size, training.optimizer, training.lr_finder) == (64, "adam", "valley")
        assert (training.learning_rate, training.early_stopping, training.patience, training.min_delta) == (
            1e-4, True, 5, 1e-4)  # fmt: skip
    assert (frozen.epochs, first.epochs, frozen.parameters["backbone"].freeze) == (3, 20, True)
    assert (second.batch_size, second.epochs, second.learning_rate, second.start_from) == (
        128, 5, 8e-5, "phase1/best")  # fmt: skip
    assert second.lr_finder == "off"
    assert [stage.config.data.filter for stage in stages] == ["any(labels)", "any(labels)", ""]
    memories = [stage.config.model_dump()["memory"] for stage in stages]
    assert [memory["momentum"] for memory in memories] == [0.9, 0.9, 0.9999]
