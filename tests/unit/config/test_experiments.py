"""Finding experiments, a guide's commands and files, tasks outside voxray, every experiment file we ship."""

import json
from pathlib import Path

import jsonschema
import pytest

from voxray.config.errors import InputError
from voxray.config.resolve import Resolved
from voxray.config.schema import find
from voxray.config.spellings import Move, Spelling, Spellings
from voxray.config.tree import Node
from voxray.config.yaml import read_yaml
from voxray.core.experiment import default_config, experiment_files, find_experiment, load_experiment
from voxray.core.guide import read_guide
from voxray.core.registry import TASKS, aliases, config_class
from voxray.core.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))

# The form of the guide's files (DOMAINS.md S4), shortened; `ranger` is nothing that we have.
GUIDE = """\
experiment_name: memory_rarity_effv2s
description: "EfficientNetV2-S with rarity-based memory"
hypothesis: rare findings gain most
model: {num_classes: 14, backbone: efficientnet_v2_s, pretrained: true, dropout_rate: 0.25}
memory:
  bank_size: 512
  update_strategy: rarity
data: {data_dir: /path/to/data, image_size: [224, 224], seed: 85}
phase1: {batch_size: 64, total_epochs: 20, lr: 0.0001, optimizer: ranger, use_lr_finder: true}
phase2: {batch_size: 128, epochs: 5, lr_min: 0.00002, lr_max: 0.00008, memory_momentum: 0.9999}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two tasks' folders that share one name; the working directory is inside it."""
    for name in (
        "cxr_memory/dev_fast",
        "cxr_memory/memory_rarity_effv2s",
        "other/dev_fast",
        "other/only_here",
    ):
        path = tmp_path / f"experiments/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("task: cxr_memory\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_fits_its_schema_and_names_it(file: Path) -> None:
    resolved = load_experiment(str(file))
    assert resolved.config.experiment_name == file.stem
    assert resolved.config.task == file.parent.name
    assert resolved.config.description
    assert file.read_text().startswith(
        f"# yaml-language-server: $schema=../../docs/schemas/{file.parent.name}.json\n"
    )
    schema = json.loads((ROOT / f"docs/schemas/{file.parent.name}.json").read_text())
    jsonschema.validate(read_yaml(file, file.name)[0].plain(), schema)


def test_the_issues_experiments_are_there() -> None:
    assert {"dev_fast", "nih64", "baseline_effv2s", "baseline_resnet50"} <= {
        path.stem for path in EXPERIMENTS
    }


def test_an_editor_sees_mistakes_through_the_schema() -> None:
    schema = json.loads((ROOT / "docs/schemas/cxr_memory.json").read_text())
    jsonschema.validate({"_base_": "dev_fast.yaml", "stages.1.learning_rate": 1e-4}, schema)
    for wrong in ({"training": {"bath_size": 4}}, {"training": {"batch_size": "4"}}, {"nonsense": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("only_here", "other/only_here"),
        ("only_here.yaml", "other/only_here"),
        ("other/dev_fast", "other/dev_fast"),
        ("experiments/other/dev_fast", "other/dev_fast"),
        ("experiments/other/dev_fast.yaml", "other/dev_fast"),
        ("configs/experiments/memory_rarity_effv2s.yaml", "cxr_memory/memory_rarity_effv2s"),
    ],
)
def test_an_experiment_is_a_path_a_name_or_the_guides_own_path(
    project: Path, reference: str, file: str
) -> None:
    real = project / f"experiments/{file}.yaml"
    found, notes = find_experiment(reference)
    assert found == real
    assert notes == ([] if Path(reference).is_file() else [f"{reference} is experiments/{file}.yaml"])


def test_names_work_from_a_folder_below(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "experiments/other")
    assert (
        find_experiment("memory_rarity_effv2s")[0]
        == project / "experiments/cxr_memory/memory_rarity_effv2s.yaml"
    )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "dev_fast",
            r"several experiments: experiments/cxr_memory/dev_fast\.yaml, experiments/other/dev_fast\.yaml",
        ),
        ("only_her", "did you mean only_here"),
        (
            "elsewhere/only_here.yaml",
            "there is no experiment 'elsewhere/only_here.yaml'; did you mean only_here",
        ),
        ("zzzzzzzzz", "`voxray ls experiments` lists them"),
    ],
)
def test_unknown_and_ambiguous_names_are_refused_with_what_there_is(
    project: Path, reference: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        find_experiment(reference)


def test_without_a_project_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiment_files() == []
    with pytest.raises(InputError, match="no experiments/ folder at or above"):
        find_experiment("dev_fast")


def test_the_name_comes_from_the_file_unless_the_file_says_one(project: Path) -> None:
    assert load_experiment("other/dev_fast").config.experiment_name == "dev_fast"
    (project / "my run (2).yaml").write_text("task: cxr_memory")
    assert load_experiment("my run (2).yaml").config.experiment_name == "my-run-2-"
    assert load_experiment("my run (2).yaml", ["experiment_name=x"]).config.experiment_name == "x"


def test_a_file_without_a_task_says_what_to_add(project: Path) -> None:
    (project / "x.yaml").write_text("training: {epochs: 1}")
    with pytest.raises(InputError, match=r"x\.yaml: `task` is missing; add e\.g\. `task: cxr_memory`"):
        load_experiment("x.yaml")
    assert load_experiment("x.yaml", ["task=cxr_memory"]).config.training.epochs == 1


def test_a_task_outside_voxray_is_found_from_the_working_directory(project: Path) -> None:
    (project / "my_package").mkdir()
    (project / "my_package/tasks.py").write_text(
        "from voxray.core.run_config import RunConfig\n"
        "class Config(RunConfig):\n    depth: int = 3\n"
        "class Mine:\n    Config = Config\n"
    )
    (project / "x.yaml").write_text("task: my_package.tasks:Mine\ndepth: 5")
    resolved = load_experiment("x.yaml", ["training.epochs=2"])
    assert resolved.config.model_dump(include={"depth", "task"}) == {
        "depth": 5,
        "task": "my_package.tasks:Mine",
    }
    with pytest.raises(InputError, match=r"did you mean depth \(int, default 3\)"):
        load_experiment("x.yaml", ["dept=5"])
    with pytest.raises(InputError, match="'os:getcwd' is no task: it has no `Config`"):
        load_experiment("x.yaml", ["task=os:getcwd"])


def test_default_config_takes_values_without_a_file() -> None:
    resolved = default_config("cxr_memory", {"data.prepare.image_size": 64}, "command line")
    assert resolved.config.data.prepare.model_dump()["image_size"] == 64
    assert resolved.sources["data.prepare.image_size"] == "command line"
    with pytest.raises(InputError, match=r"image_sise: 64 was given.*data\.prepare\.image_size"):
        default_config("cxr_memory", {"data.prepare.image_sise": 64}, "command line")


def test_a_guides_command_works_on_our_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    overrides = ["phase1.batch_size=32", "phase2.batch_size=64", "data.data_dir=/x"]
    resolved = load_experiment("configs/experiments/baseline_effv2s.yaml", overrides)
    assert [stage.training.batch_size for stage in resolved.config.resolved_stages()] == [32, 32, 64]
    assert "command line: phase1.batch_size is training.batch_size here" in resolved.notes
    assert "command line: phase2.batch_size is stages.2.batch_size here" in resolved.notes


def guide_in_our_words(folder: Path, text: str = GUIDE) -> tuple[Resolved[RunConfig], dict[str, str]]:
    (folder / "old.yaml").write_text(text)
    guide = read_guide(folder / "old.yaml")
    assert guide is not None
    return guide.resolved, {left.key: left.reason for left in guide.unmapped}


def test_a_guides_whole_file_is_read_through_the_alias_table(tmp_path: Path) -> None:
    resolved, _ = guide_in_our_words(tmp_path)
    config = resolved.config
    assert (config.task, config.experiment_name, config.hypothesis) == (
        "cxr_memory", "memory_rarity_effv2s", "rare findings gain most")  # fmt: skip
    assert (config.data.path, config.training.seed) == ("/path/to/data", 85)
    assert config.data.prepare.model_dump()["image_size"] == 224
    assert config.model_dump()["model"]["dropout"] == 0.25
    stages = [stage.training for stage in config.resolved_stages()]
    assert [(stage.batch_size, stage.epochs, stage.learning_rate) for stage in stages] == [
        (64, 3, 1e-4), (64, 20, 1e-4), (128, 5, 8e-5)]  # fmt: skip
    assert resolved.sources["stages.2.learning_rate"].endswith("old.yaml:10")
    assert resolved.sources["stages.0.epochs"] == "goes with phase1.batch_size"


def test_every_key_of_a_guides_file_is_mapped_or_listed(tmp_path: Path) -> None:
    resolved, unmapped = guide_in_our_words(tmp_path)
    assert set(unmapped) == {"model.num_classes", "training.optimizer"}
    assert "'ranger' is not adamw" in unmapped["training.optimizer"]
    (tmp_path / "old.yaml").write_text(GUIDE)
    given = {path for path, _ in read_yaml(tmp_path / "old.yaml", "old.yaml")[0].leaves()}
    set_here = {path for path, source in resolved.sources.items() if "old.yaml" in source}
    # Both entries of image_size are one value of ours.
    assert len(given) == len(set_here) + len(unmapped) + 1


def test_a_guides_image_size_that_is_not_square_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"data\.image_size\.1: 200 contradicts 224 .*data\.prepare\.image_size"
    ):
        guide_in_our_words(tmp_path, GUIDE.replace("[224, 224]", "[224, 200]"))


def test_our_own_files_are_no_guides_files(project: Path) -> None:
    assert all(read_guide(file) is None for file in EXPERIMENTS)
    (project / "x.yaml").write_text("training: {epochs: 1}")
    assert read_guide(project / "x.yaml") is None


@pytest.mark.parametrize("task", TASKS)
def test_spellings_lead_to_keys_that_are_ours(task: str) -> None:
    config = config_class(task)
    for theirs, said in aliases(task).items():
        spelling = said if isinstance(said, Spelling) else Spelling(said)
        if spelling.instead:
            assert not find(config, as_path(theirs)), f"{theirs} is a key of ours"
            continue
        moved = [move for move in lead_on(task, theirs) if not move.instead]
        for path in [move.path for move in moved] + [as_path(path) for path in spelling.also]:
            assert find(config, path), f"{theirs} → {'.'.join(path)}, which is no key"
        ours = find(config, as_path(theirs))
        # A key of ours may have other values, or be a section that a plain value stands for.
        stands_for_section = ours is not None and ours.is_section and spelling.path.startswith(theirs)
        assert ours is None or spelling.value or stands_for_section, theirs


def as_path(pattern: str) -> tuple[str, ...]:
    return tuple("1" if part == "*" else part for part in pattern.split("."))


def lead_on(task: str, pattern: str) -> list[Move]:
    """Where a plain value goes; a list's entry where the pattern is one."""
    return Spellings(aliases(task)).translate(Node.of(0, "here"), as_path(pattern))[1]
