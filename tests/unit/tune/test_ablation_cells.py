"""An ablation's file: what its arms and cells are, and every bad one a sentence with its place."""

import itertools
import subprocess
import sys

import pytest

from voxray.config.errors import InputError
from voxray.tune.ablation.cells import cell_key, load_ablation, shortest_suffixes
from voxray.tune.plan import load_plan

EXPERIMENT = """
task: cxr_memory
description: the base
data: {path: somewhere}
model: {backbone: test_efficientnet, dropout: 0.1}
training: {epochs: 3, weight_decay: 0.1}
"""
HEAD = """
experiment: base.yaml
objective: {metric: val/auroc, mode: max}
ablate:
"""


@pytest.fixture
def ablation(tmp_path):
    (tmp_path / "base.yaml").write_text(EXPERIMENT)

    def load(*lines: str, overrides: tuple[str, ...] = ()):
        (tmp_path / "arms.yaml").write_text(HEAD.lstrip() + "".join(f"  {line}\n" for line in lines))
        return load_ablation(
            load_plan(str(tmp_path / "arms.yaml"), [f"storage.path={tmp_path / 'runs'}", *overrides])
        )

    return load


def problems(load, *lines: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as caught:
        load(*lines, overrides=overrides)
    return str(caught.value)


def test_named_arms_one_thing_off_and_a_grid_over_the_baseline(ablation):
    found = ablation(
        "seeds: [3, 1]",
        "baseline: {training.epochs: 2}",
        "arms:",
        "  wide: {model.hidden_dim: 512, model.dropout: 0.3}",
        "off: {training.weight_decay: 0, objective.augment: false}",
        "grid: {training.batch_size: [16, 64], model.dropout: [0.1, 0.5]}",
    )
    assert [arm.name for arm in found.arms] == [
        "baseline",
        "wide",
        "without weight_decay",
        "without augment",
        "batch_size=16 dropout=0.1",
        "batch_size=16 dropout=0.5",
        "batch_size=64 dropout=0.1",
        "batch_size=64 dropout=0.5",
    ]
    configs = {arm.name: arm.config.config for arm in found.arms}
    assert {config.training.epochs for config in configs.values()} == {2}
    assert configs["wide"].model.dropout == 0.3
    assert configs["without weight_decay"].training.weight_decay == 0
    assert configs["without augment"].objective.augment is False
    last = configs["batch_size=64 dropout=0.5"]
    assert (last.training.batch_size, last.model.dropout) == (64, 0.5)
    # seed by seed, so that an ablation cut short has whole pairs
    pairs = list(itertools.product((3, 1), configs))
    assert [(cell.seed, cell.arm.name) for cell in found.cells] == pairs
    assert [cell.index for cell in found.cells] == list(range(16))
    assert len({cell.key for cell in found.cells}) == 16
    wide = found.cells[1]
    assert wide.values == {"model.hidden_dim": 512, "model.dropout": 0.3, "training.seed": 3}
    run = found.run_config(wide)
    assert run.config.training.seed == 3
    assert run.sources["model.hidden_dim"].endswith("arms.yaml:7")
    assert run.sources["training.seed"].endswith("arms.yaml:4")
    assert "Arm 'wide' of ablation 'arms', seed 3" in run.config.description
    assert found.cells_folder.parts[-3:] == ("runs", "cxr_memory", "cells")
    assert found.cell_folder(wide).name == wide.key == cell_key(run.config, 3)


def test_a_cell_is_found_by_what_decides_its_result(ablation):
    lines = ("seeds: [0, 1]", "arms: {wide: {model.hidden_dim: 64}}")
    keys = [cell.key for cell in ablation(*lines).cells]

    def changed(*overrides: str) -> bool:
        return [cell.key for cell in ablation(*lines, overrides=overrides).cells] != keys

    for free in (
        "storage.path=elsewhere",
        "logging.log_every_n_steps=7",
        "checkpoints.keep=5",
        "scale.cpus_per_worker=2",
        "scale.num_workers=2",
        "run.name=other",
        "experiment_name=other",
        "description=other words",
        "tags=[x]",
        "ablate.value=last",
        "objective.metric=val/loss",
    ):
        assert not changed(free), free
    for decisive in ("data.path=elsewhere", "training.epochs=4", "model.in_chans=3", "data.filter=x == 1"):
        assert changed(decisive), decisive
    # Another ablation that reaches the same values in another way shares the cells.
    other = ablation("seeds: [1]", "grid: {model.hidden_dim: [128, 64]}")
    assert {cell.key for cell in other.cells} & set(keys) == set(keys[2:])


def test_suffixes_are_as_short_as_they_can_be():
    paths = ["memory.top_k", "memory.momentum", "training.momentum", "stages.0.momentum", "momentum"]
    assert shortest_suffixes(paths) == {
        "memory.top_k": "top_k",
        "memory.momentum": "memory.momentum",
        "training.momentum": "training.momentum",
        "stages.0.momentum": "0.momentum",
        "momentum": "momentum",
    }


def test_values_in_a_grids_names_are_as_they_were_typed(ablation):
    found = ablation(
        "grid:",
        "  training.learning_rate: [1e-4, 3.0e-3]",
        "  model.backbone: [test_resnet]",
        "  training.clip_grad_norm: [null]",
    )
    assert [arm.name for arm in found.arms[1:]] == [
        "learning_rate=1e-4 backbone=test_resnet clip_grad_norm=null",
        "learning_rate=3.0e-3 backbone=test_resnet clip_grad_norm=null",
    ]


def test_the_corner_of_a_grid_that_is_the_baseline_is_left_out_and_told(ablation):
    found = ablation("grid: {model.dropout: [0.1, 0.3], training.weight_decay: [0.1, 0.2]}")
    assert [arm.name for arm in found.arms] == [
        "baseline",
        "dropout=0.1 weight_decay=0.2",
        "dropout=0.3 weight_decay=0.1",
        "dropout=0.3 weight_decay=0.2",
    ]
    assert any("'dropout=0.1 weight_decay=0.1' of the grid is the baseline itself" in n for n in found.notes)
    assert "nothing is left to compare" in problems(ablation, "grid: {model.dropout: [0.1]}")


def test_an_arm_that_is_equal_to_another_is_refused_with_both_names(ablation):
    said = problems(
        ablation,
        "arms:",
        "  same: {model.dropout: 0.1}",
        "  half: {model.dropout: 0.5}",
        "  again: {model.dropout: 0.5, training.weight_decay: 0.1}",
        "off: {training.weight_decay: 0.1}",
        "grid: {model.dropout: [0.5]}",
    )
    lines = said.splitlines()
    assert len(lines) == 4
    for line, words in zip(
        lines,
        (
            r"arms.yaml:5: 'same' trains the same as 'baseline'",
            r"arms.yaml:7: 'again' trains the same as 'half'",
            r"arms.yaml:8: 'without weight_decay' trains the same as 'baseline'",
            r"arms.yaml:9: 'dropout=0.5' trains the same as 'half'",
        ),
        strict=True,
    ):
        assert words in line


def test_all_problems_come_at_once_with_their_lines(ablation):
    said = problems(
        ablation,
        "seeds: [0, -1]",
        "baseline: {training.epoch: 2}",
        "arms:",
        "  a: {model.dropuot: 0.3, training.batch_size: many}",
        "  b: {training.seed: 4}",
        "  baseline: {model.dropout: 0.4}",
        "off: {scale.num_workers: 2}",
        "grid: {run.name: [x, y], model.dropout: []}",
    )
    for line, words in (
        (4, "ablate.seeds: -1 is not int ≥ 0"),
        (5, "did you mean training.epochs"),
        (7, "did you mean model.dropout"),
        (7, "'many' is not int"),
        (8, "training.seed: arms are compared seed by seed; list them in ablate.seeds"),
        (9, "'baseline' is the name of two arms"),
        (10, "scale.num_workers does not change what a run learns"),
        (11, "ablate.grid.model.dropout has no values"),
    ):
        assert any(f"arms.yaml:{line}:" in one and words in one for one in said.splitlines()), words


def test_a_seed_is_never_smuggled_in_under_another_name(ablation):
    said = problems(ablation, "arms: {x: {hparams.seed: 4, model.dropout: 0.3}}")
    assert "training.seed" in said
    assert "'x'" in said


def test_overrides_that_would_have_no_effect_are_refused(ablation):
    lines = ("baseline: {training.epochs: 2}", "arms: {x: {model.dropout: 0.3}}")
    said = problems(ablation, *lines, overrides=("training.epochs=5", "training.seed=3"))
    assert "training.epochs=… has no effect" in said
    assert "arms.yaml:4" in said
    assert "give ablate.seeds=[…]" in said
    found = ablation(*lines, overrides=("model.dropout=0.2", "ablate.seeds=[5, 6]"))
    assert [cell.seed for cell in found.cells] == [5, 5, 6, 6]
    assert found.arms[0].config.config.model.dropout == 0.2


def test_a_search_is_no_ablation_and_an_ablation_no_search(ablation, tmp_path):
    plan = ablation("arms: {x: {model.dropout: 0.3}}").plan
    with pytest.raises(InputError, match="is an ablation; run `voxray ablate"):
        _ = plan.search
    text = HEAD.replace("ablate:", "search: {trials: 1, space: {model.dropout: {fixed: 0}}}")
    (tmp_path / "search.yaml").write_text(text)
    with pytest.raises(InputError, match="is a search, not an ablation; run it by `voxray tune"):
        load_ablation(load_plan(str(tmp_path / "search.yaml")))


def test_a_wrong_arm_answers_without_torch_ray_or_numpy(ablation, tmp_path):
    problems(ablation, "arms: {x: {model.dropuot: 0.3}}")
    code = (
        "import sys\n"
        "from voxray.cli.main import main\n"
        "try:\n"
        "    main(['ablate', sys.argv[1]])\n"
        "except SystemExit as end:\n"
        "    print(end.code, [m for m in ('torch', 'ray', 'numpy', 'optuna', 'scipy') if m in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "arms.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "2 []"
    assert done.stderr.startswith("error: ")
    assert "did you mean model.dropout" in done.stderr
