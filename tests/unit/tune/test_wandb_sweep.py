"""W&B sweep files: their numbers by closed form, their keys by unique suffix, all that is wrong at once."""

import math
import textwrap

import pytest

from voxray.config.errors import InputError
from voxray.config.resolve import resolve
from voxray.config.yaml import parse_yaml
from voxray.core.experiment import load_experiment
from voxray.tune.config import SpaceConfig
from voxray.tune.space.wandb_sweep import is_sweep, to_space

METRICS = ["train/loss", "val/loss", "val/auroc", "val/auprc"]
EXPERIMENT = """
task: cxr_memory
data: {path: somewhere}
model: {backbone: test_efficientnet, dropout: 0.1}
training: {epochs: 3, monitor: val/auroc, monitor_mode: max}
"""
DOCUMENTED = """
program: train.py
name: sweepdemo
method: bayes
run_cap: 12
metric:
  goal: minimize
  name: val_loss
parameters:
  learning_rate:
    min: 0.0001
    max: 0.1
  batch_size:
    values: [16, 32, 64]
  epochs:
    values: [5, 10, 15]
  optimizer:
    values: ["adam", "sgd"]
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text: str, experiment: str = EXPERIMENT, metrics=METRICS, has_end=False):
        (tmp_path / "base.yaml").write_text(experiment)
        tree, problems = parse_yaml(textwrap.dedent(text).lstrip("\n"), "sweep.yaml")
        assert not problems
        return to_space(tree, load_experiment("base.yaml"), metrics, has_end)

    return load


@pytest.fixture
def drawn(load):
    """What one parameter, written in flow style, becomes, and the notes about it."""

    def drawn(parameter: str, method: str = "random", key: str = "learning_rate"):
        space = load(
            f"method: {method}\nrun_cap: 3\nmetric: {{name: val/loss}}\nparameters:\n  {key}: {parameter}"
        )
        (found,) = space.tree.get(("search", "space")).plain().values()
        (kind,) = found
        return kind, found[kind], "\n".join(space.notes)

    return drawn


def problems_of(load, text: str, **options) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        load(text, **options)
    return caught.value.problems


def test_the_documentations_sweep_is_a_space_that_reads_itself(load):
    sweep = load(DOCUMENTED)
    assert sweep.tree.plain() == {
        "experiment_name": "sweepdemo",
        "experiment": "base.yaml",
        "objective": {"metric": "val/loss", "mode": "min"},
        "search": {
            "sampler": {"name": "tpe"},
            "trials": 12,
            "space": {
                "training.learning_rate": {"uniform": [0.0001, 0.1]},
                "training.batch_size": {"choice": [16, 32, 64]},
                "training.epochs": {"choice": [5, 10, 15]},
                "training.optimizer": {"choice": ["adam", "sgd"]},
            },
        },
    }
    again, problems = parse_yaml(sweep.text, "printed.yaml")
    assert (again.plain(), problems) == (sweep.tree.plain(), [])
    assert resolve(SpaceConfig, [again]).config == resolve(SpaceConfig, [sweep.tree]).config
    assert any("left out, as voxray trains: program" in note for note in sweep.notes)
    assert "sweep.yaml:9: learning_rate is training.learning_rate here" in sweep.notes
    assert "sweep.yaml:7: metric val_loss is val/loss here" in sweep.notes


def test_every_value_keeps_its_place_in_the_sweep(load):
    tree = load(DOCUMENTED).tree
    assert tree.get(("search", "space", "training.batch_size", "choice")).source == "sweep.yaml:12"
    assert tree.get(("search", "trials")).source == "sweep.yaml:4"
    assert tree.get(("objective", "metric")).source == "sweep.yaml:7"
    with pytest.raises(InputError, match=r"sweep\.yaml:12: search\.space.*same value"):
        resolve(SpaceConfig, [load(DOCUMENTED.replace("[16, 32, 64]", "[16, 16]")).tree])


def test_a_sweep_is_told_from_a_space():
    def tree(text):
        return parse_yaml(text, "f.yaml")[0]

    assert is_sweep(tree(DOCUMENTED))
    assert is_sweep(tree("{method: grid, program: train.py}"))
    assert is_sweep(tree("{parameters: {lr: {value: 1}}}"))
    assert not is_sweep(tree("{experiment: a, objective: {metric: m, mode: min}, search: {trials: 1}}"))
    assert not is_sweep(tree("{experiment: a, ablate: {}}"))
    assert not is_sweep(tree("[1, 2]"))


@pytest.mark.parametrize(
    ("parameter", "kind", "value"),
    [
        ("{value: 0.01}", "fixed", 0.01),
        ("{distribution: constant, value: 0.01}", "fixed", 0.01),
        ("{values: [0.1, 0.2]}", "choice", [0.1, 0.2]),
        ("{distribution: categorical, values: [0.1, 0.2]}", "choice", [0.1, 0.2]),
        ("{min: 1, max: 5}", "int", [1, 5]),
        ("{min: 1, max: 5.0}", "uniform", [1, 5.0]),
        ("{min: 1e-4, max: 0.1}", "uniform", [1e-4, 0.1]),
        ("{distribution: uniform, min: 1, max: 5}", "uniform", [1, 5]),
        ("{distribution: int_uniform, min: 2, max: 2}", "fixed", 2),
        ("{distribution: q_uniform, min: 1, max: 7}", "int", [1, 7]),  # q defaults to 1
        ("{distribution: q_uniform, min: 0.1, max: 0.7, q: 0.2}", "quniform", [0.0, 0.6, 0.2]),  # 0.7/0.2 → 3
        ("{distribution: q_uniform, min: 16, max: 128, q: 16}", "quniform", [16, 128, 16]),
        ("{distribution: q_uniform, min: 0.2, max: 0.4, q: 0.2}", "choice", [0.2, 0.4]),
        ("{distribution: q_uniform, min: 0.2, max: 0.25, q: 0.2}", "fixed", 0.2),
        ("{distribution: log_uniform, min: -5, max: 0}", "loguniform", [math.e**-5, 1.0]),
        ("{distribution: log_uniform_values, min: 1e-5, max: 0.1}", "loguniform", [1e-5, 0.1]),
        # log(1/X) from 2 to 5: X from e^-5 to e^-2
        ("{distribution: inv_log_uniform, min: 2, max: 5}", "loguniform", [math.e**-5, math.e**-2]),
        ("{distribution: inv_log_uniform_values, min: 1e-5, max: 0.1}", "loguniform", [1e-5, 0.1]),
        ("{distribution: q_log_uniform, min: 0, max: 4}", "logint", [1, 55]),  # e^4 = 54.6
        ("{distribution: q_log_uniform_values, min: 8, max: 256, q: 1}", "logint", [8, 256]),
        ("{distribution: normal}", "normal", [0, 1]),
        ("{distribution: normal, mu: 0.5, sigma: 0.1}", "normal", [0.5, 0.1]),
        ("{distribution: normal, mu: 0.5, sigma: 0}", "fixed", 0.5),
        ("{distribution: beta}", "uniform", [0.0, 1.0]),  # Beta(1, 1)
    ],
)
def test_each_distribution_becomes_the_one_that_draws_alike(drawn, parameter, kind, value):
    found_kind, found, _ = drawn(parameter)
    assert found_kind == kind
    assert found == pytest.approx(value, rel=1e-12)


def test_what_is_not_kept_is_told(drawn):
    _, _, notes = drawn("{distribution: log_uniform, min: 0.001, max: 0.1}")  # not meant as exponents
    assert "drawn from 1.001 to 1.105 (for values as they stand there is log_uniform_values)" in notes
    kind, value, notes = drawn("{values: [1, 2, 3], probabilities: [0.5, 0.5, 0]}")
    assert (kind, value) == ("choice", [1, 2])
    assert "values of probability 0 are left out" in notes
    assert "not kept" not in notes
    assert "the probabilities are not kept" in drawn("{values: [1, 2], probabilities: [0.7, 0.3]}")[2]
    assert "half as often" in drawn("{distribution: q_uniform, min: 1, max: 7}")[2]


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("{distribution: q_normal}", "q_normal has no equivalent here; write normal"),
        # e^(−3 ∓ 2·0.5) = e^−4 and e^−2
        (
            "{distribution: log_normal, mu: -3, sigma: 0.5}",
            "log_uniform_values with min: 0.01832 and max: 0.1353",
        ),
        ("{distribution: q_log_normal}", "q_log_normal has no equivalent"),
        ("{distribution: beta, a: 2, b: 5}", "beta has no equivalent"),
        ("{distribution: q_beta}", "q_beta has no equivalent"),
        ("{distribution: q_log_uniform_values, min: 8, max: 256, q: 8}", "write q: 1 (whole numbers)"),
        ("{distribution: q_log_uniform, min: -2, max: 2}", "draws 0 too, as 0.1353 is rounded"),
        ("{distribution: log_uniform_values, min: 0, max: 1}", "min: 0 has no logarithm"),
        ("{distribution: log_uniform, min: 0, max: 1000}", "e to the power of 1000 is no number"),
        ("{distribution: int_uniform, min: 0.5, max: 2}", "not both whole"),
        ("{distribution: loguniform, min: 1, max: 2}", "none of W&B's; did you mean log_uniform"),
        ("{distribution: uniform, min: 1}", "max is missing"),
        ("{min: 1, mx: 2}", "says not what it is drawn from"),
        ("{min: 2.0, max: 1.0}", "min 2 is above max 1; exchange them"),
        ("{min: 1, max: '2.5'}", "max: '2.5' is not a finite number"),
        ("{values: 3}", "values must be a list"),
        ("{values: []}", "values must be a list of at least one value"),
        ("{values: [1, 2], probabilities: [1]}", "probabilities must be 2 numbers"),
        ("{value: 1, q: 2}", "q is no key of distribution constant"),
        ("{distribution: q_uniform, min: 0.0, max: 1.0, q: 0}", "q: 0 must be above 0"),
        ("0.1", "0.1: a parameter is a map; write `value: 0.1`"),
    ],
)
def test_what_has_no_equivalent_or_is_wrong_is_named_with_the_mend(drawn, parameter, words):
    with pytest.raises(InputError) as caught:
        drawn(parameter)
    assert caught.value.problems[0].startswith("sweep.yaml:5: learning_rate: ")
    assert words in str(caught.value)


def test_a_grid_has_as_many_trials_as_combinations(load, drawn):
    text = """
        method: grid{}
        parameters:
          learning_rate: {{values: [0.1, 0.01, 0.001]}}
          batch_size: {{min: 4, max: 7}}
          dropout: {{distribution: q_uniform, min: 0.1, max: 0.4, q: 0.1}}
          epochs: {{value: 2}}
    """
    sweep = load(text.format("")).tree.plain()["search"]
    assert sweep["sampler"] == {"name": "brute_force"}
    assert sweep["trials"] == 3 * 4 * 3
    # numpy.arange(0.1, 0.4, 0.1) is what W&B's grid search takes; without its rounding
    assert sweep["space"]["model.dropout"] == {"choice": [0.1, 0.2, 0.3]}
    assert load(text.format("\n        run_cap: 5")).tree.plain()["search"]["trials"] == 5
    assert load(text.format("\n        run_cap: 500")).tree.plain()["search"]["trials"] == 36
    for parameter in ("{min: 0.1, max: 0.5}", "{distribution: normal}"):
        with pytest.raises(InputError, match="method: grid tries every value"):
            drawn(parameter, method="grid")
    with pytest.raises(InputError, match="probabilities: grid search"):
        drawn("{values: [1, 2], probabilities: [0.5, 0.5]}", method="grid")


@pytest.mark.parametrize(
    ("key", "path", "value"),
    [
        ("lr", "training.learning_rate", 0.01),
        ("learning_rate", "training.learning_rate", 0.01),
        ("wd", "training.weight_decay", 0.01),
        ("batch_size", "training.batch_size", 8),  # and not data.embed.batch_size
        ("batch-size", "training.batch_size", 8),
        ("hidden_dim", "model.hidden_dim", 64),
        ("dropout_rate", "model.dropout", 0.2),
        ("model.dropout", "model.dropout", 0.2),
        ("hparams.lr", "training.learning_rate", 0.01),
        ("seed", "training.seed", 1),
        ("validate_every.epochs", "training.validate_every.epochs", 1),
    ],
)
def test_flat_keys_are_found_by_their_last_words(drawn, load, key, path, value):
    space = load(f"method: grid\nparameters:\n  {key}: {{value: {value}}}")
    assert space.tree.plain()["search"]["space"] == {path: {"fixed": value}}


def test_values_are_read_in_a_guides_spelling(load):
    text = "method: grid\nparameters:\n  optimizer: {values: [AdamW, SGD]}\n  use_amp: {value: true}"
    assert load(text).tree.plain()["search"]["space"] == {
        "training.optimizer": {"choice": ["adamw", "sgd"]},
        "training.precision": {"fixed": "bf16"},
    }
    text = "method: grid\nparameters:\n  early_stopping_patience: {values: [2, 4]}"
    assert load(text).tree.plain()["search"]["space"] == {
        "training.early_stopping": {"fixed": True},
        "training.patience": {"choice": [2, 4]},
    }


def test_nested_parameters_are_dotted_paths(load):
    text = """
        method: random
        run_cap: 2
        parameters:
          optimizer:
            parameters:
              learning_rate: {values: [0.01, 0.001]}
              momentum: {value: 0.9}
          model:
            parameters:
              dropout: {min: 0.0, max: 0.5}
    """
    assert load(text).tree.plain()["search"]["space"] == {
        "training.learning_rate": {"choice": [0.01, 0.001]},
        "training.momentum": {"fixed": 0.9},
        "model.dropout": {"uniform": [0.0, 0.5]},
    }


def test_ambiguous_and_unknown_keys_list_what_there_is(load):
    text = """
        method: random
        run_cap: 2
        parameters:
          path: {value: here}
          bank_sze: {values: [1, 2]}
          hiden_dim: {values: [1, 2]}
          lr: {value: 1}
          learning_rate: {value: 1}
    """
    path, bank, hidden, twice = problems_of(load, text)
    assert path == "sweep.yaml:4: path: is the end of data.path, storage.path; write one of these"
    assert bank.startswith("sweep.yaml:5: bank_sze: there is no such key")
    assert "did you mean model.hidden_dim (int ≥ 1, default 512)?" in hidden
    assert twice == (
        "sweep.yaml:8: learning_rate: training.learning_rate is drawn at sweep.yaml:7 already; "
        "keep one of the two"
    )


def test_what_a_stage_sets_itself_is_not_searched_by_accident(load):
    staged = EXPERIMENT + "stages: [{name: warm, epochs: 1}, {name: full, learning_rate: 0.01}]\n"
    text = "method: random\nrun_cap: 2\nparameters:\n  {}: {{min: 0.001, max: 0.1}}"
    (problem,) = problems_of(load, text.format("lr"), experiment=staged)
    assert "is the end of stages.1.learning_rate, training.learning_rate; write one of these" in problem
    space = load(text.format("stages.1.lr"), experiment=staged).tree.plain()["search"]["space"]
    assert list(space) == ["stages.1.learning_rate"]
    (problem,) = problems_of(load, text.format("stages.2.learning_rate"), experiment=staged)
    assert "there is no such key" in problem
    assert "training.weight_decay" in load(text.format("weight_decay"), experiment=staged).text


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("val/auroc", "val/auroc"),
        ("val_auroc", "val/auroc"),
        ("validation_loss", "val/loss"),
        ("auroc", "val/auroc"),
        ("val.loss", "val/loss"),
    ],
)
def test_a_metric_is_found_in_what_the_task_reports(load, name, metric):
    space = load(
        f"method: random\nrun_cap: 2\nmetric: {{name: {name}, goal: maximize}}\n"
        "parameters: {lr: {value: 1}}"
    )
    assert space.tree.plain()["objective"] == {"metric": metric, "mode": "max"}


def test_a_metric_that_is_never_reported_is_an_error(load):
    text = "method: random\nrun_cap: 2\nmetric: {{name: {}}}\nparameters: {{lr: {{value: 1}}}}"
    (problem,) = problems_of(load, text.format("loss"))
    assert "several metrics end so; write one of train/loss, val/loss" in problem
    (problem,) = problems_of(load, text.format("val_aurok"))
    assert "is never reported; did you mean val/auroc?" in problem
    assert load(text.format("val_aurok"), metrics=()).tree.plain()["objective"]["metric"] == "val/aurok"


def test_without_a_metric_the_experiments_monitor_is_looked_at(load):
    space = load("method: grid\nparameters: {lr: {values: [1, 2]}}")
    assert space.tree.plain()["objective"] == {"metric": "val/auroc", "mode": "max"}
    assert any("training.monitor is looked at: val/auroc" in note for note in space.notes)
    several = "method: random\nrun_cap: 2\nmetrics: [{name: val/auroc, goal: maximize}, {name: val/loss}]\n"
    assert load(several + "parameters: {lr: {values: [1, 2]}}").tree.plain()["objective"] == [
        {"metric": "val/auroc", "mode": "max"},
        {"metric": "val/loss", "mode": "min"},
    ]


def scheduler(load, rules: str, experiment: str = EXPERIMENT):
    space = load(
        f"method: random\nrun_cap: 2\nearly_terminate: {{type: hyperband, {rules}}}\n"
        "parameters: {lr: {value: 1}}",
        experiment=experiment,
    )
    resolve(SpaceConfig, [space.tree])
    return space.tree.plain()["search"]["scheduler"]


def test_hyperband_brackets_are_ashas_rungs(load):
    # min_iter 3, eta 3: brackets 3, 9, 27 …
    assert scheduler(load, "min_iter: 3") == {"name": "asha", "grace_epochs": 3, "reduction_factor": 3}
    # max_iter 27, s 2, eta 3: brackets 27/3 = 9 and 27/9 = 3
    assert scheduler(load, "max_iter: 27, s: 2")["grace_epochs"] == 3
    # eta 2, s 5 of max_iter 10: 5, 2.5, 1.25, then less than 1
    assert scheduler(load, "max_iter: 10, s: 5, eta: 2") == {
        "name": "asha",
        "grace_epochs": 1,
        "reduction_factor": 2,
    }
    # an iteration is an evaluation
    every_2 = EXPERIMENT.replace("epochs: 3", "epochs: 3, validate_every: {epochs: 2}")
    assert scheduler(load, "min_iter: 3", every_2)["grace_epochs"] == 6
    every_50_steps = EXPERIMENT.replace("epochs: 3", "epochs: 3, validate_every: {steps: 50}")
    assert scheduler(load, "min_iter: 3, strict: true", every_50_steps) == {
        "name": "asha",
        "unit": "steps",
        "grace_steps": 150,
        "reduction_factor": 3,
    }
    for rules, words in {
        "max_iter: 27": "max_iter needs s",
        "eta: 3": "needs min_iter, or max_iter and s",
        "min_iter: 0": "min_iter: 0 must be a number of 1 or more",
        "min_iter: 2, eta: 1": "eta: 1 must be above 1",
        "max_iter: 2, s: 1": "has no bracket",
        "min_iters: 2": "did you mean min_iter",
    }.items():
        with pytest.raises(InputError, match=words):
            scheduler(load, rules)


def test_a_search_without_an_end_is_refused_unless_the_command_line_ends_it(load):
    text = "method: {}\nmetric: {{name: val/loss}}\nparameters: {{lr: {{min: 0.1, max: 0.2}}}}"
    for method in ("random", "bayes"):
        (problem,) = problems_of(load, text.format(method))
        assert problem == (
            f"sweep.yaml:1: method: {method} has no end of its own; add `run_cap: 40` here, or "
            "search.trials=40 on the command line"
        )
        assert "trials" not in load(text.format(method), has_end=True).tree.plain()["search"]


def test_all_that_is_wrong_is_told_at_once(load):
    text = """
        methd: random
        method: baies
        run_cap: 0
        metric: {name: val/auc, gaol: maximize}
        early_terminate: {type: median}
        parameters:
          lr: {min: 3}
          batch_size: {values: []}
    """
    found = problems_of(load, text)
    assert [problem.split(":")[1] for problem in found] == ["1", "2", "7", "8", "5", "3", "4", "4"]
    assert "did you mean method?" in found[0]
    assert "none of grid, random, bayes" in found[1]
    assert "early_terminate: `type: hyperband` is the only one" in found[4]


def test_the_rest_of_a_sweep_is_told_or_kept(load):
    text = """
        program: train.py
        command: [python, "${program}"]
        project: lab
        entity: us
        name: my first sweep!
        description: what it is for
        method: grid
        metric: {name: val/loss, target: 0.1}
        parameters: {lr: {values: [0.1, 0.2]}}
    """
    sweep = load(text)
    plain = sweep.tree.plain()
    assert (plain["experiment_name"], plain["description"]) == ("my-first-sweep", "what it is for")
    told = "\n".join(sweep.notes)
    assert "sweep.yaml:1: left out, as voxray trains: program, command" in told
    assert "add logging.wandb.enabled=true logging.wandb.project=lab logging.wandb.entity=us" in told
    assert "sweep.yaml:8: metric.target is left out" in told
