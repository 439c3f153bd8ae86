"""STUDY: one driver at a time, one space per study, and a best.yaml that is the best trial's experiment."""

import json
from pathlib import Path

import pytest

from voxray.config.errors import InputError
from voxray.core.experiment import load_experiment
from voxray.tune.plan import load_plan
from voxray.tune.study.folder import open_study, write_best

EXPERIMENT = """
task: cxr_memory
description: "2024: a base"
tags: ["1e-4", dev]
run: {name: its_own}
data: {path: somewhere}
stages: [{name: one, learning_rate: 1e-3}, {name: two, epochs: 2}]
"""
SPACE = """
experiment: base.yaml
objective: {metric: val/auroc, mode: max}
search:
  trials: 3
  space:
    stages.1.learning_rate: {loguniform: [1e-5, 1e-2]}
    training.clip_grad_norm: {choice: [null, 1.0]}
    model.backbone: {choice: [test_resnet, test_efficientnet]}
"""


@pytest.fixture
def plan_of(tmp_path):
    def make(*overrides, space=SPACE, experiment=EXPERIMENT):
        (tmp_path / "base.yaml").write_text(experiment)
        (tmp_path / "wide.yaml").write_text(space)
        return load_plan(str(tmp_path / "wide.yaml"), [f"storage.path={tmp_path / 'runs'}", *overrides])

    return make


def finish_all(plan):
    with open_study(plan) as ledger:
        for index in ledger.remaining():
            ledger.ask(index)
            ledger.report(index, {"step": 1, "val/auroc": index / 10})
            ledger.finish(index)


def test_best_yaml_is_the_best_trials_experiment(plan_of):
    plan = plan_of("scale.threads_per_worker=1")
    finish_all(plan)
    with open_study(plan) as ledger:
        best = ledger.best()
        (file,) = write_best(plan, ledger)
        trial = plan.trial(best.index, best.values)
    loaded = load_experiment(str(file)).config
    assert best.index == 2
    assert loaded == trial.config
    assert loaded.resolved_stages() == trial.config.resolved_stages()
    assert loaded.stages[1].learning_rate == best.values["stages.1.learning_rate"]
    assert loaded.run_name == "wide-0002"
    assert "Trial 2 of study 'wide'" in loaded.description
    text = file.read_text()
    assert "_base_" not in text
    assert "patience" not in text  # defaults are left out
    assert text.startswith("# Trial 2 of study wide: val/auroc = 0.2\n")


def test_a_second_driver_is_refused_while_the_first_one_searches(plan_of):
    plan = plan_of()
    with open_study(plan), pytest.raises(InputError, match="another voxray works on this study"):
        open_study(plan).__enter__()
    with open_study(plan) as ledger:
        assert ledger.remaining() == [0, 1, 2]


def test_a_changed_space_or_experiment_is_refused_with_the_difference(plan_of):
    finish_all(plan_of())
    for changed, said in [
        (
            plan_of(space=SPACE.replace("1e-2", "1e-1")),
            r"space\S*learning_rate.*1e-05, 0.01\] before, \[1e-05, 0.1\] now",
        ),
        (plan_of(space=SPACE + "    model.dropout: {fixed: 0}\n"), "model.dropout.*nothing before, 0 now"),
        (plan_of("objective.mode=min"), 'objective.mode: "max" before, "min" now'),
        (plan_of("search.sampler.seed=1"), "search.sampler.seed: 0 before, 1 now"),
        (plan_of("training.epochs=2"), "training.epochs: 10 before, 2 now"),
    ]:
        with pytest.raises(InputError, match=said) as caught, open_study(changed):
            pass
        assert "another name with experiment_name=" in str(caught.value)
        assert len(caught.value.problems) == 2


def test_more_trials_other_words_and_another_scale_continue_the_study(plan_of):
    finish_all(plan_of())
    started = json.loads((plan_of().folder / "study.json").read_text())["started"]
    continued = plan_of(
        "search.trials=5",
        "search.sampler.seed=0",
        "search.max_concurrent=1",
        "description=more of it",
        "scale.cpus_per_worker=2",
    )
    with open_study(continued) as ledger:
        assert ledger.remaining() == [3, 4]
    described = json.loads((continued.folder / "study.json").read_text())
    assert described["started"] == started
    assert described["space"]["search"]["trials"] == 5
    assert described["config"]["data"]["path"] == str(Path("somewhere").absolute())
    with open_study(plan_of("experiment_name=other", "training.epochs=2")) as ledger:
        assert ledger.remaining() == [0, 1, 2]


def test_a_broken_study_is_named(plan_of):
    plan = plan_of()
    finish_all(plan)
    (plan.folder / "study.json").write_text("{")
    with pytest.raises(InputError, match=r"study.json is broken .*experiment_name="), open_study(plan):
        pass
    (plan.folder / "study.json").unlink()
    with pytest.raises(InputError, match=r"holds a journal without study\.json"), open_study(plan):
        pass
