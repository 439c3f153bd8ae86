"""Space files: every bad input is one sentence with its place and its mend, before torch or Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from voxray.config.errors import InputError
from voxray.tune.checks import check_metrics
from voxray.tune.plan import find_space, load_plan, space_files, split_overrides
from voxray.tune.space.draw import Space

ROOT = Path(__file__).resolve().parents[3]

EXPERIMENT = """
task: cxr_memory
description: the base
data: {path: somewhere}
model: {backbone: test_efficientnet}
training: {epochs: 3}
stages:
  - {name: one, learning_rate: 1e-3}
"""
SPACE = """
experiment: base.yaml
objective: {metric: val/auroc, mode: max}
search:
  trials: 4
  space:
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "base.yaml").write_text(EXPERIMENT)

    def write(*lines: str, head: str = SPACE) -> str:
        (tmp_path / "a_space.yaml").write_text(head.lstrip() + "".join(f"    {line}\n" for line in lines))
        return str(tmp_path / "a_space.yaml")

    return write


def problems(reference: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        check_metrics(load_plan(reference, overrides))
    return str(caught.value)


@pytest.mark.parametrize("file", sorted((ROOT / "search_spaces").rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_space_fits_its_experiment(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = load_plan(str(file))
    check_metrics(plan)
    assert plan.space.config.description
    assert plan.space.config.ablate or Space(plan.search.space).varying


def test_a_space_is_found_by_its_name(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = ROOT / "search_spaces" / "cxr_memory" / "tradeoff.yaml"
    assert file in space_files()
    inside = ("cxr_memory/tradeoff", "search_spaces/cxr_memory/tradeoff.yaml")
    assert {find_space(name) for name in ("tradeoff", "tradeoff.yaml", *inside, str(file))} == {file}
    with pytest.raises(InputError, match="no search space 'tradof'; did you mean tradeoff"):
        find_space("tradof")
    with pytest.raises(InputError, match=r"'quick' is the name of several spaces: .*cxr_memory/quick.yaml"):
        find_space("quick")


def test_a_good_space_with_every_kind_of_distribution(space):
    plan = load_plan(
        space(
            "training.learning_rate: {loguniform: [1e-5, 1e-2]}",
            "training.batch_size: {logint: [8, 64]}",
            "training.clip_grad_norm: {choice: [null, 1, 5.0]}",
            "training.epochs: {quniform: [1, 5, 2]}",
            "stages.0.weight_decay: {normal: [0.1, 0.01]}",
            "model.dropout: {uniform: [0, 0.5]}",
            "model.in_chans: {fixed: 3}",
            "objective.augment: {choice: [true, false]}",
        )
    )
    assert plan.name == "a_space"
    assert plan.folder == Path("runs/cxr_memory/studies/a_space")
    values = {"training.learning_rate": 2e-4, "stages.0.weight_decay": 0.11, "training.epochs": 3.0}
    trial = plan.trial(7, values)
    assert trial.config.resolved_stages()[0].training.weight_decay == 0.11
    assert trial.config.training.epochs == 3
    assert trial.config.experiment_name == trial.config.run_name == "a_space-0007"
    assert trial.config.description.startswith("Trial 7 of study 'a_space'")
    assert trial.sources["training.learning_rate"].endswith("a_space.yaml: trial 7")


def test_all_problems_come_at_once_with_their_lines(space):
    said = problems(
        space(
            "training.bath_size: {choice: [16, 32]}",
            "training.epochs: {uniform: [1, 4]}",
            "model.dropout: {uniform: [0, 1.5]}",
            "model.in_chans: {int: [1, 3]}",
            "training.learning_rate: {choice: [1e-3, fast]}",
            "stages.1.learning_rate: {fixed: 1e-3}",
            "run.name: {choice: [a, b]}",
        )
    )
    lines = said.splitlines()
    assert len(lines) == 7
    for line, number, words in zip(
        lines,
        range(6, 13),
        (
            "did you mean training.batch_size (int ≥ 1, default 32)",
            "training.epochs: 2.85",  # both ends are whole, what lies between is not
            "model.dropout: 1.5 is not",
            "model.in_chans: 2 is not",
            "'fast' is not float",
            "entry 1 of 'stages' does not exist",
            "run.name does not change how a trial trains",
        ),
        strict=True,
    ):
        assert f"a_space.yaml:{number}" in line
        assert words in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "model.dropout: {choice: []}",
            "a_space.yaml:6: search.space.model.dropout: choice: [] leaves nothing",
        ),
        ("model.dropout: {uniform: [0.5, 0.1]}", "a_space.yaml:6: .*low 0.5 is above high 0.1"),
        ("model.dropout: {loguniform: [0, 0.1]}", "a_space.yaml:6: .*low 0.0 has no logarithm"),
        ("model.dropout: {uniform: [0, 0.1], fixed: 0}", "a_space.yaml:6: .*exactly one of"),
        ("model.dropout: {unifrm: [0, 0.1]}", "a_space.yaml:6: .*unifrm"),
        ("model.dropout: 0.1", "a_space.yaml:6: .*0.1 is not"),
    ],
)
def test_a_distribution_that_holds_nothing_is_refused_with_its_line(space, line, said):
    with pytest.raises(InputError) as caught:
        load_plan(space(line))
    import re

    assert re.search(said.replace("[]", r"\[\]"), str(caught.value)), str(caught.value)


def test_files_without_what_a_search_needs(space, tmp_path):
    assert "search.space" in problems(space(head=SPACE))
    head = "experiment: base.yaml\nsearch: {trials: 0, space: {model.dropout: {fixed: 0}}}\n"
    said = problems(space(head=head))
    assert "objective: is missing" in said
    assert "search.trials: 0 is not int or null ≥ 1" in said
    assert "there is no experiment" in problems(
        space("model.dropout: {fixed: 0}", head=SPACE.replace("base", "bose"))
    )
    assert "is there twice" in problems(space("model.dropout: {fixed: 0}", "model.dropout: {fixed: 1}"))
    assert "did you mean tpe" in problems(space("model.dropout: {fixed: 0}"), "search.sampler.name=tpo")


def test_a_metric_that_the_task_never_reports(space):
    said = problems(space("model.dropout: {fixed: 0}", head=SPACE.replace("val/auroc", "val/auc")))
    assert "a_space.yaml:2: objective.metric: task 'cxr_memory' never reports 'val/auc'" in said
    assert "did you mean val/auroc?" in said
    check_metrics(load_plan(space("model.dropout: {fixed: 0}"), ["objective.metric=train/loss"]))


def test_overrides_go_to_the_file_that_owns_the_key(space):
    mine = ["search.trials=9", "objective.mode=min", "experiment_name=other", "experiment=base.yaml"]
    others = ["training.epochs=7", "objective.augment=false", "storage.path=elsewhere"]
    assert split_overrides([*others, *mine]) == (mine, others)
    plan = load_plan(space("model.dropout: {fixed: 0}"), [*mine, *others])
    assert plan.space.config.search.trials == 9
    assert plan.space.config.objective.mode == "min"
    assert plan.base.config.training.epochs == 7
    assert plan.folder == Path("elsewhere/cxr_memory/studies/other")
    assert "did you mean search.trials" in problems(space("model.dropout: {fixed: 0}"), "search.trails=9")
    assert "written in the space's file" in problems(space("model.dropout: {fixed: 0}"), "search.space.a={}")
    said = problems(space("model.dropout: {fixed: 0}"), "model.dropout=0.3")
    assert "model.dropout=0.3 has no effect" in said
    assert "a_space.yaml:6" in said


def test_a_wrong_key_answers_without_torch_ray_or_optuna(space):
    code = (
        "import sys\n"
        "from voxray.cli.main import main\n"
        "try:\n"
        "    main(['tune', sys.argv[1]])\n"
        "except SystemExit as end:\n"
        "    print(end.code, [m for m in ('torch', 'ray', 'numpy', 'optuna') if m in sys.modules])\n"
    )
    reference = space("training.bath_size: {choice: [16, 32]}")
    done = subprocess.run([sys.executable, "-c", code, reference], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "2 []"
    assert done.stderr.startswith("error: ")
    assert "training.batch_size" in done.stderr
    assert "Traceback" not in done.stderr
