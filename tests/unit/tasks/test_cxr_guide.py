"""The chest X-ray guide as it is written: its experiments, its keys, its commands, its files, its warning.

What is asserted is in the guide's text ("Training Workflow", "Available Experiments", "Key Parameters"), or,
for fastai's part of it, in DOMAINS.md S4.b-4.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from random_rows import random_rows, resolved
from voxray.cli import train
from voxray.cli.main import app
from voxray.config.errors import InputError
from voxray.core.experiment import load_experiment
from voxray.core.guide import read_guide
from voxray.core.registry import task_class
from voxray.core.run_config import Stage
from voxray.data.source import open_source
from voxray.tasks.cxr_memory.config import Config
from voxray.tasks.cxr_memory.spellings import PHASES
from voxray.testing.datasets import write_dataset
from voxray.train.control import Stopped
from voxray.train.fast_dev_run import shortened
from voxray.train.loop import fit
from voxray.train.optimisation.parameters import choose_trainable, train_mode
from voxray.train.run_folder import RunFolder
from voxray.train.trained.evaluate_run import evaluate_run
from voxray.train.trained.load import load

ROOT = Path(__file__).resolve().parents[3]

# "Available Experiments": name → backbone, strategy (None: no memory), and what else differs.
EXPERIMENTS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "baseline_effv2s": ("efficientnet_v2_s", None, {}),
    "baseline_resnet50": ("resnet50", None, {}),
    "memory_rarity_effv2s": ("efficientnet_v2_s", "rarity", {}),
    "memory_rarity_effv2m": ("efficientnet_v2_m", "rarity", {}),
    "memory_rarity_resnet50": ("resnet50", "rarity", {}),
    "memory_rarity_densenet121": ("densenet121", "rarity", {}),
    "memory_diversity_effv2s": ("efficientnet_v2_s", "diversity", {}),
    "memory_hybrid_effv2s": ("efficientnet_v2_s", "hybrid", {}),
    "memory_statistical_effv2s": ("efficientnet_v2_s", "statistical", {}),
    "memory_fifo_effv2s": ("efficientnet_v2_s", "fifo", {}),
    "ablation_no_normalize": ("efficientnet_v2_s", "rarity", {"normalize_retrieved": False}),
    "ablation_topk1": ("efficientnet_v2_s", "rarity", {"top_k": 1}),
    "ablation_topk5": ("efficientnet_v2_s", "rarity", {"top_k": 5}),
    "ablation_bank256": ("efficientnet_v2_s", "rarity", {"bank_size": 256}),
    "ablation_bank1024": ("efficientnet_v2_s", "rarity", {"bank_size": 1024}),
}
MEMORY = {"bank_size": 512, "top_k": 3, "normalize_retrieved": "both"}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def config_of(name: str, *overrides: str) -> Config:
    config = load_experiment(name, overrides).config
    assert isinstance(config, Config)
    return config


def own(stage: Stage) -> Config:
    assert isinstance(stage.config, Config)
    return stage.config


# --- experiments


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_the_guides_values(name: str) -> None:
    config = config_of(name)
    backbone, strategy, differs = EXPERIMENTS[name]
    assert (config.model.backbone, config.model.pretrained, config.training.seed) == (backbone, True, 85)
    assert config.data.prepare.image_size == 224
    assert config.memory.use_memory == (strategy is not None)
    if strategy is not None:
        assert config.memory.update_strategy == strategy
        assert config.memory.model_dump(include=set(MEMORY)) == MEMORY | differs
    frozen, first, second = config.resolved_stages()
    # Phase 1: abnormal only, batch 64, BCE, freeze 3 and up to 20 epochs, LR finder, momentum 0.9.
    for stage, epochs in ((frozen, 3), (first, 20)):
        training = stage.training
        assert own(stage).data.filter == "any(labels)"
        assert (training.batch_size, training.epochs, training.lr_finder) == (64, epochs, "valley")
        assert (training.learning_rate, training.weight_decay, training.monitor) == (1e-4, 0.01, "val/loss")
        assert (training.early_stopping, training.patience, training.min_delta) == (True, 5, 1e-3)
        assert (own(stage).objective.loss, own(stage).memory.momentum) == ("bce", 0.9)
    assert (frozen.training.pct_start, first.training.pct_start, first.training.div) == (0.99, 0.3, 5)
    # Phase 2: all images, batch 128, from phase 1, one-cycle 5 epochs, (2e-5, 8e-5), momentum 0.9999.
    training = second.training
    assert own(second).data.filter == ""
    assert (training.batch_size, training.epochs, training.start_from) == (128, 5, "phase1/best")
    assert (training.schedule, training.pct_start, training.div, training.div_final) == (
        "one_cycle", 0.25, 25, 1e5)  # fmt: skip
    assert (training.parameters["backbone"].learning_rate, training.learning_rate) == (2e-5, 8e-5)
    assert not training.parameters["backbone"].freeze
    assert (training.lr_finder, own(second).memory.momentum) == ("off", 0.9999)
    # fastai's Adam, in every stage.
    assert {(s.training.optimizer, s.training.betas, s.training.eps) for s in (frozen, first, second)} == {
        ("adamw", (0.9, 0.99), 1e-5)}  # fmt: skip
    assert config.told() == [note for note in config.told() if "is timm's" in note]


def test_the_guides_files_take_the_same_phases_for_granted() -> None:
    declared = config_of("memory_rarity_effv2s", "task=cxr_memory").model_dump(mode="json")["stages"]
    for phase, stage in zip(PHASES, declared, strict=True):
        assert phase | stage == stage


# torchvision's feature sizes (DOMAINS.md S4.a).
@pytest.mark.parametrize(
    ("backbone", "features"),
    [("efficientnet_v2_s", 1280), ("efficientnet_v2_m", 1280), ("resnet50", 2048), ("densenet121", 1024)],
)
def test_each_backbone_can_be_built(backbone: str, features: int) -> None:
    config = config_of("memory_rarity_effv2s", f"model.backbone={backbone}", "model.pretrained=false")
    with torch.device("meta"):
        model = task_class("cxr_memory")(config).build_model()
    assert model.get_buffer("bank.memory_MD").shape == (512, features)


def test_the_frozen_epochs_freeze_the_backbone_and_its_batchnorm() -> None:
    config = config_of("memory_dev")
    frozen, first, _ = config.resolved_stages()
    model = task_class("cxr_memory")(config).build_model()
    for stage, is_frozen in ((frozen, True), (first, False)):
        choose_trainable(model, stage.training)
        train_mode(model)
        backbone = model.get_submodule("backbone")
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert {parameter.requires_grad for parameter in backbone.parameters()} == {not is_frozen}
        assert {norm.training for norm in norms} == {not is_frozen}
        assert all(p.requires_grad for p in model.get_submodule("head").parameters())


# --- keys

# As the guide types it → our paths. Experiments are memory_rarity_effv2s.
KEYS: list[tuple[str, dict[str, Any]]] = [
    ("phase1.batch_size=32", {"training.batch_size": 32}),
    ("phase1.use_lr_finder=true", {"training.lr_finder": "valley"}),
    ("phase1.use_lr_finder=false", {"training.lr_finder": "off"}),
    ("phase1.epochs=10", {"stages.1.epochs": 10}),
    ("phase1.total_epochs=10", {"stages.1.epochs": 10}),
    ("phase1.freeze_epochs=2", {"stages.0.epochs": 2, "stages.0.enabled": True}),
    ("phase1.freeze_epochs=0", {"stages.0.epochs": 3, "stages.0.enabled": False}),
    ("phase1.loss=asl", {"objective.loss": "asl"}),
    ("phase1.loss=BCE", {"objective.loss": "bce"}),
    ("phase1.memory_momentum=0.8", {"memory.momentum": 0.8}),
    ("phase1.filter_normal=true", {"data.filter": "any(labels)"}),
    ("phase1.filter_normal=false", {"data.filter": ""}),
    ("phase1.lr=3e-4", {"training.learning_rate": 3e-4}),
    ("phase1.early_stopping_patience=3", {"training.patience": 3}),
    ("phase1.accumulation_steps=2", {"training.accumulate_grad_batches": 2}),
    ("phase2.batch_size=64", {"stages.2.batch_size": 64}),
    ("phase2.epochs=8", {"stages.2.epochs": 8}),
    ("phase2.memory_momentum=0.99", {"stages.2.memory.momentum": 0.99}),
    ("phase2.loss=AsymmetricLoss", {"stages.2.objective.loss": "asl"}),
    ("phase2.filter_normal=true", {"stages.2.data.filter": "any(labels)"}),
    ("phase2.load_from_phase1=true", {"stages.2.start_from": "phase1/best"}),
    ("phase2.lr_range=[1e-5, 4e-5]",
     {"stages.2.learning_rate": 4e-5, "stages.2.parameters.backbone.learning_rate": 1e-5}),
    ("phase2.lr_range=(1e-5, 4e-5)",
     {"stages.2.learning_rate": 4e-5, "stages.2.parameters.backbone.learning_rate": 1e-5}),
    ("phase2.lr_range=slice(1e-5, 4e-5)",
     {"stages.2.learning_rate": 4e-5, "stages.2.parameters.backbone.learning_rate": 1e-5}),
    ("phase2.lr_max=4e-5", {"stages.2.learning_rate": 4e-5}),
    ("phase2.lr_min=1e-5", {"stages.2.parameters.backbone.learning_rate": 1e-5}),
    ("filter_normal=false", {"data.filter": ""}),
    ("data.filter_normal=true", {"data.filter": "any(labels)"}),
    ("data_dir=/path/to/data", {"data.path": "/path/to/data"}),
    ("data.data_dir=/path/to/your/data", {"data.path": "/path/to/your/data"}),
    ("save_name=mine", {"checkpoints.export_name": "mine", "experiment_name": "memory_rarity_effv2s"}),
    ("model.pretrained=false", {"model.pretrained": False}),
    ("memory.normalize_retrieved='both'", {"memory.normalize_retrieved": "both"}),
    ("memory.normalize_retrieved=true", {"memory.normalize_retrieved": True}),
    ("memory.normalize_retrieved=false", {"memory.normalize_retrieved": False}),
]  # fmt: skip


@pytest.mark.parametrize(("override", "ours"), KEYS, ids=[row[0] for row in KEYS])
def test_a_key_of_the_guide_means_what_it_says(override: str, ours: dict[str, Any]) -> None:
    resolved_experiment = load_experiment("memory_rarity_effv2s", [override])
    assert {path: at(resolved_experiment.config, path) for path in ours} == ours
    given, _, text = override.partition("=")
    moved = [path for path in ours if path != given and resolved_experiment.sources[path] == "command line"]
    assert all(any(path in note for note in resolved_experiment.notes) for path in moved)
    # The same in a search: one operation, dotted path → value.
    if not text.startswith(("[", "(", "slice", "'")):
        base = load_experiment("memory_rarity_effv2s")
        value = next(iter(ours.values())) if given in ours else plain(text)
        searched = base.with_values({given: value}, "trial 0").config
        assert {path: at(searched, path) for path in ours} == ours


def at(config: Any, path: str) -> Any:
    found: Any = config.model_dump(mode="json")
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def plain(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def test_phase_1_reaches_both_of_its_stages_and_not_phase_2() -> None:
    keys = ["phase1.batch_size=16", "phase1.memory_momentum=0.5", "phase1.filter_normal=false"]
    stages = config_of("memory_rarity_effv2s", *keys).resolved_stages()
    assert [stage.training.batch_size for stage in stages] == [16, 16, 128]
    assert [own(stage).memory.momentum for stage in stages] == [0.5, 0.5, 0.9999]
    assert [own(stage).data.filter for stage in stages] == ["", "", ""]


def test_without_frozen_epochs_the_run_has_two_stages() -> None:
    stages = config_of("memory_rarity_effv2s", "phase1.freeze_epochs=0").resolved_stages()
    assert [(stage.index, stage.name, stage.entry) for stage in stages] == [
        (0, "phase1", 1),
        (1, "phase2", 2),
    ]


@pytest.mark.parametrize(
    ("experiment", "override", "message"),
    [
        ("cxr_memory/dev_fast", "phase2.batch_size=64",
         "is stages.2.batch_size where stages.2.name is 'phase2', and here it is not there"),
        ("cxr_memory/dev_fast", "phase1.epochs=2",
         "where stages.1.name is 'phase1', and here it is not there"),
    ],
)  # fmt: skip
def test_a_phase_that_is_not_there_is_told(experiment: str, override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_experiment(experiment, [override])
    assert message in str(caught.value)


def test_a_key_of_a_phase_never_lands_in_another_stage(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("task: cxr_memory\nstages: [{name: phase1}, {name: phase2}]\n")
    for key in ("phase1.epochs=3", "phase1.batch_size=3", "phase2.epochs=3", "phase1.freeze_epochs=1"):
        with pytest.raises(InputError, match=rf"{key.partition('=')[0]} is .* where stages\.\d\.name is"):
            load_experiment(str(tmp_path / "two.yaml"), [key])


def test_a_phases_key_without_stages_is_the_runs(tmp_path: Path) -> None:
    assert config_of("cxr_memory/dev_fast", "phase1.batch_size=8").training.batch_size == 8


def test_contradictions_are_told(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "task: cxr_memory\nphase1: {epochs: 2}\nphase2: {lr_range: [1.0e-5, 2.0e-5], lr_max: 3.0e-5}\n"
    )
    with pytest.raises(InputError, match=r"phase2\.lr_max: .* contradicts 2e-05 .*stages\.2\.learning_rate"):
        load_experiment(str(tmp_path / "e.yaml"))
    (tmp_path / "e.yaml").write_text(
        "task: cxr_memory\nphase1: {batch_size: 32}\ntraining: {batch_size: 16}\n"
    )
    with pytest.raises(InputError, match=r"phase1\.batch_size: 32 contradicts 16"):
        load_experiment(str(tmp_path / "e.yaml"))


# --- commands and files


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `voxray train` would train."""
    found: list[Any] = []
    monkeypatch.setattr(train, "_train", lambda experiment, _: found.append(experiment))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_guides_command_works_as_typed(name: str, loaded: list[Any], x_rays: Path) -> None:
    """`python train.py --config configs/experiments/NAME.yaml`"""
    app(
        args=["train", "--config", f"configs/experiments/{name}.yaml", f"data.data_dir={x_rays}"],
        standalone_mode=False,
    )
    assert loaded[0].config.experiment_name == name


def test_the_legacy_command_works_as_typed(loaded: list[Any], x_rays: Path) -> None:
    """`python train_fastai.py --experiment memory_rarity_effv2s --data_dir /path/to/data`"""
    app(
        args=["train", "--experiment", "memory_rarity_effv2s", "--data_dir", str(x_rays)],
        standalone_mode=False,
    )
    config = loaded[0].config
    assert (config.experiment_name, config.data.path) == ("memory_rarity_effv2s", str(x_rays))


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("data.data_dir=/no/such", "data.path (data.data_dir, command line)"),
        ("--data_dir=/no/such", "data.path (data_dir, command line)"),
        ("data.path=/no/such", "data.path (command line)"),
        ("data.path=no/such", "data.path (command line)"),
    ],
)
def test_a_missing_data_folder_names_its_key(override: str, place: str, loaded: list[Any]) -> None:
    with pytest.raises(InputError) as caught:
        app(args=["train", "memory_rarity_effv2s", override], standalone_mode=False)
    assert str(caught.value).startswith(f"{place}: there is no folder '")
    assert loaded == []


def test_a_folder_of_raw_images_says_how_to_prepare_it(tmp_path: Path, loaded: list[Any]) -> None:
    (tmp_path / "Data_Entry_2017.csv").touch()
    with pytest.raises(InputError) as caught:
        app(args=["train", "memory_rarity_effv2s", f"data.data_dir={tmp_path}"], standalone_mode=False)
    assert f"run `voxray data prepare cxr_memory {tmp_path} OUT` once" in str(caught.value)


# "Create New Config File" and "Out of Memory Error", one file.
CUSTOM = """\
experiment_name: my_experiment
description: "My custom experiment"

model:
  backbone: efficientnet_v2_s  # or resnet50, densenet121, etc.

memory:
  use_memory: true
  update_strategy: rarity  # or diversity, hybrid, statistical, fifo
  bank_size: 512  # 256, 512, 1024
  top_k: 3  # 1, 3, 5
  normalize_retrieved: 'both'  # or false
phase1:
  batch_size: 32  # reduce from 64
phase2:
  batch_size: 64  # reduce from 128
data:
  data_dir: /path/to/your/data  # update this
"""


def test_a_file_of_the_guide_comes_out_as_three_stages(tmp_path: Path) -> None:
    (tmp_path / "custom.yaml").write_text(CUSTOM)
    guide = read_guide(tmp_path / "custom.yaml")
    assert guide is not None
    assert guide.unmapped == []
    stages = guide.resolved.config.resolved_stages()
    assert [(s.name, s.training.batch_size, s.training.epochs) for s in stages] == [
        ("phase1_frozen", 32, 3), ("phase1", 32, 20), ("phase2", 64, 5)]  # fmt: skip
    assert [own(stage).memory.momentum for stage in stages] == [0.9, 0.9, 0.9999]
    assert guide.resolved.config.checkpoints.export_stages == ("phase1", "phase2")
    assert guide.resolved.sources["stages.2.memory.momentum"] == "goes with phase1.batch_size"
    assert any("phase1.batch_size sets stages=" in note for note in guide.resolved.notes)


def test_a_file_over_one_of_ours_keeps_its_stages(tmp_path: Path) -> None:
    for name in ("memory_dev", "dev_fast"):
        shutil.copy(ROOT / f"experiments/cxr_memory/{name}.yaml", tmp_path)
    (tmp_path / "over.yaml").write_text("_base_: memory_dev.yaml\nphase2: {batch_size: 16}\n")
    stages = load_experiment(str(tmp_path / "over.yaml")).config.resolved_stages()
    assert [(s.training.epochs, s.training.batch_size) for s in stages] == [(1, 32), (3, 32), (1, 16)]


# --- what runs


@pytest.fixture(scope="module")
def x_rays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 random images, half of them without a finding; in validation 4 of 10."""
    folder = tmp_path_factory.mktemp("x-rays")
    schema = resolved(task_class("cxr_memory")(Config()).schema(), 32)
    splits = {"train": random_rows(schema, 24, 0), "val": random_rows(schema, 10, 1)}
    splits["train"]["labels"][::2] = 0
    splits["train"]["labels"][:, 3] = torch.nan  # unknown: neither a finding nor none
    splits["val"]["labels"][:4] = 0
    return write_dataset(folder / "data", schema, splits, 24)


FAST = [
    "model.pretrained=false",
    "model.backbone=test_efficientnet",
    "model.hidden_dim=16",
    "model.in_chans=1",
]


@dataclass
class Ran:
    """A run's folder and what it reported."""

    run: RunFolder
    reports: list[dict[str, float]]

    def epochs(self) -> list[dict[str, Any]]:
        return [record for record in self.run.records() if record["kind"] == "epoch"]


def ran(config: Config, folder: Path, stop_after: int | None = None) -> Ran:
    folder.mkdir(exist_ok=True)
    made = task_class("cxr_memory")(config)
    task = type(made)(config, schema=resolved(made.schema(), 32))
    source = open_source(config.data.path, config.data, stages=task.read_stages())
    reports: list[dict[str, float]] = []

    def report(numbers: dict[str, float]) -> None:
        reports.append(numbers)
        if len(reports) == stop_after:
            raise Stopped

    fit(task, source, config, RunFolder(folder), report, torch.device("cpu"))
    return Ran(RunFolder(folder), reports)


def test_a_custom_file_with_our_task_trains_both_phases(tmp_path: Path, x_rays: Path) -> None:
    (tmp_path / "custom.yaml").write_text(f"task: cxr_memory\n{CUSTOM}")
    short = [f"data.path={x_rays}", "phase1.epochs=1", "phase1.freeze_epochs=1", "phase2.epochs=1",
             "memory.bank_size=8", "training.monitor=val/auroc", "training.monitor_mode=max"]  # fmt: skip
    config = load_experiment(
        str(tmp_path / "custom.yaml"), [*FAST, *short, "phase1.filter_normal=true"]
    ).config
    assert isinstance(config, Config)
    done = ran(config, tmp_path)
    assert [record["stage"] for record in done.epochs()] == ["phase1_frozen", "phase1", "phase2"]
    ranks = [record for record in done.run.records() if record["kind"] == "rank"]
    assert ranks[0]["rows"] == 12 + 12 + 24  # the abnormal half twice, then all


def test_the_finished_run_is_evaluated_on_all_images(tmp_path: Path, x_rays: Path) -> None:
    """Phase 1's filter is the run's own section; what counts in the end is phase 2's, which has none."""
    config = config_of("memory_dev", "stages.1.epochs=1", f"data.path={x_rays}", *FAST)
    folder = tmp_path / "run"
    done = ran(config, folder)
    done.run.write_config(config, {})
    evaluations = {record["stage"]: record for record in done.epochs()}
    # Chance's loss would hide it: a finding's share differs between the abnormal and all images.
    assert evaluations["phase1"]["val/loss"] != evaluations["phase2"]["val/loss"]
    result = evaluate_run(load(folder), "val")
    assert result["num_rows"] == 10
    assert result["metrics"]["loss"] == pytest.approx(evaluations["phase2"]["val/loss"], rel=1e-5)
    first = load(
        folder / "checkpoints" / json.loads((folder / "checkpoints/best-1.json").read_text())["checkpoint"]
    )
    assert evaluate_run(first, "val", out=tmp_path / "phase1")["num_rows"] == 6


def test_a_stage_that_is_switched_off_is_gone_by_also_on_resume(tmp_path: Path, x_rays: Path) -> None:
    off = ["stages.0.enabled=false", "stages.1.epochs=2", f"data.path={x_rays}", *FAST]
    config = config_of("memory_dev", *off)
    whole = ran(config, tmp_path / "whole")
    assert [record["stage"] for record in whole.epochs()] == ["phase1", "phase1", "phase2"]
    with pytest.raises(Stopped):
        ran(config, tmp_path / "cut", stop_after=2)
    resumed = ran(config, tmp_path / "cut")
    assert [record["val/loss"] for record in resumed.epochs()] == [r["val/loss"] for r in whole.epochs()]


def test_a_fast_run_shortens_the_stages_that_are_there() -> None:
    base = load_experiment(
        "memory_rarity_effv2s", ["stages.0.enabled=false", "stages.2.data.limit_samples=5000"]
    )
    short = shortened(base).config.resolved_stages()
    assert [stage.training.lr_finder for stage in short] == ["off", "off"]
    assert [stage.config.data.limit_samples for stage in short] == [384, 384]


# --- the warning


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["phase2.memory_momentum=0.9"], ["phase2"]),
        (["phase2.memory_momentum=0.99"], ["phase2"]),
        (["phase2.memory_momentum=0.999"], []),
        ([], []),
        (
            ["phase2.memory_momentum=0.95", "data.filter=''"],
            ["phase2"],
        ),  # above phase 1's: it means to be one
        (["phase2.memory_momentum=0.9", "data.filter=''"], []),  # one phase, in stages
        (["phase2.memory_momentum=0.9", "memory.use_memory=false"], []),
        (["phase2.memory_momentum=0.9", "memory.momentum_mode=stats"], []),
        (["phase2.memory_momentum=0.9", "stages.0.enabled=false"], ["phase2"]),
    ],
)
def test_a_phase_2_that_rewrites_its_memories_is_warned_of(overrides: list[str], warned: list[str]) -> None:
    told = [note for note in config_of("memory_rarity_effv2s", *overrides).told() if "far from" in note]
    assert [note.split("'")[1] for note in told] == warned
    assert all("far from 0.9999" in note and "memory.momentum=" in note for note in told)


def test_show_and_train_print_the_warning(
    loaded: list[Any], x_rays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["show"], ["train", f"data.path={x_rays}"]):
        app(
            args=[command[0], "memory_dev", "phase2.memory_momentum=0.9", *command[1:]], standalone_mode=False
        )
        assert "warning: stage 'phase2': memory.momentum=0.9 is far from 0.9999" in capsys.readouterr().err
