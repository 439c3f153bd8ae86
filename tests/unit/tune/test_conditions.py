"""Conditions, constraints and points of a space: what is drawn when, what is refused, with its line."""

import pickle
import random

import optuna
import pytest

from voxray.config.errors import InputError
from voxray.config.expression import parse_expression
from voxray.tune.checks import check_metrics
from voxray.tune.plan import load_plan
from voxray.tune.space.conditions import condition_problems
from voxray.tune.space.config import Distribution
from voxray.tune.space.constraints import read_constraints
from voxray.tune.space.draw import Space

NESTED = {
    "a": Distribution(choice=["x", "y", "z"]),
    "b": Distribution(uniform=(0, 1), when={"a": ["x", "y"]}),
    "c": Distribution(int=(1, 3), when="b > 0.5"),
    "d": Distribution(choice=[[1, 2], [3]], when={"c": 2}),
    "e": Distribution(fixed=7, when={"a": "z"}),
}
EXPERIMENT = """
task: cxr_memory
data: {path: somewhere}
model: {backbone: test_efficientnet, hidden_dim: 256}
"""
SPACE = """experiment: base.yaml
objective: {metric: val/auroc, mode: max}
search:
  trials: 4
"""


@pytest.fixture
def plan_of(tmp_path):
    (tmp_path / "base.yaml").write_text(EXPERIMENT)

    def load(text: str, head: str = SPACE, overrides=()):
        (tmp_path / "s.yaml").write_text(head + text)
        plan = load_plan(str(tmp_path / "s.yaml"), overrides)
        check_metrics(plan)
        return plan

    return load


def expected(values: dict) -> set[str]:
    """The keys that NESTED's conditions, read by hand, want."""
    keys = {"a"}
    if values["a"] in ("x", "y"):
        keys.add("b")
        if values["b"] > 0.5:
            keys.add("c")
            if values["c"] == 2:
                keys.add("d")
    return keys | ({"e"} if values["a"] == "z" else set())


def test_a_key_is_drawn_only_where_its_condition_holds():
    space = pickle.loads(pickle.dumps(Space(NESTED)))  # as for another process
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(200):
        trial = study.ask()
        values = space.draw(trial)
        assert set(values) == expected(values)
        assert space.values(trial.params) == values
        assert space.params({k: v for k, v in values.items() if k != "e"}) == trial.params
        seen.add(frozenset(values))
    assert len(seen) == 4
    rng = random.Random(0)
    own = [space.sample(rng) for _ in range(200)]
    assert all(set(values) == expected(values) for values in own)
    assert {frozenset(values) for values in own} == seen


def test_every_combination_is_listed_once_and_a_range_has_none():
    space = Space(
        {k: v for k, v in NESTED.items() if k != "b"} | {"c": Distribution(int=(1, 3), when={"a": "x"})}
    )
    found = space.combinations()
    # x with c = 1, 3, x with c = 2 and two lists, y, z
    assert found == [
        {"a": "x", "c": 1},
        {"a": "x", "c": 2, "d": "[1, 2]"},
        {"a": "x", "c": 2, "d": "[3]"},
        {"a": "x", "c": 3},
        {"a": "y"},
        {"a": "z"},
    ]
    with pytest.raises(InputError, match="b: uniform has no end of values"):
        Space(NESTED).combinations()


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"later": 1}, "later is drawn later; move it above key"),
        ({"erlier": "x"}, "erlier is not in search.space; did you mean earlier?"),
        ({"key": 1}, "key waits for itself"),
        ({"earlier": "z"}, "earlier is never 'z'; it is one of 'x', 'y'"),
        ({"turns": 1}, "a cycle: key waits for turns, and turns for key"),
        ("earlier ==", "is no expression"),
        ("nowhere > 1", "nowhere is not in search.space"),
        ("__import__('os').system('true')", "it may call key alone"),
    ],
)
def test_a_wrong_condition_is_one_sentence(when, said):
    space = {
        "earlier": Distribution(choice=["x", "y"]),
        "key": Distribution(uniform=(0, 1), when=when),
        "later": Distribution(int=(0, 1)),
        "turns": Distribution(int=(0, 1), when={"key": 0.5}),
    }
    problems = [
        p for p in condition_problems(space, lambda path: f"s.yaml:{path}") if p.startswith("s.yaml:key")
    ]
    assert len(problems) == 1
    assert said in problems[0]


def test_true_is_not_one_and_a_list_value_is_one_of_lists():
    flag = {"f": Distribution(choice=[True, 1.5]), "g": Distribution(fixed=0, when={"f": 1})}
    assert "f is never 1" in condition_problems(flag, str)[0]
    lists = Space({"l": Distribution(choice=[[1], [2]]), "g": Distribution(fixed=0, when={"l": [2]})})
    assert [set(lists.sample(random.Random(seed))) for seed in range(20)].count({"l", "g"}) in range(1, 20)


@pytest.mark.parametrize(
    ("text", "a", "b", "excess"),
    [
        ("a <= b", 3, 5, -2),
        ("a <= b", 5, 3, 2),
        ("a >= b", 5, 3, -2),
        ("a == b", 5, 3, 2),
        ("a + 1 <= 2 * b", 9, 4, 2),
        ("a <= b and a <= 4", 6, 5, 2),  # the larger of 1 and 2
        ("1 <= a <= b", 0, 5, 1),
        ("a in [1, 2]", 1, 0, 0),
        ("a in [1, 2]", 3, 0, 1),
        ("not a == b", 3, 3, 1),
    ],
)
def test_how_far_a_constraint_is_from_holding(text, a, b, excess):
    expression = parse_expression(text, "constraints")
    assert expression.excess({"a": a, "b": b}.__getitem__) == excess
    assert (excess <= 0) == bool(expression.evaluate({"a": a, "b": b}.__getitem__))


def test_a_strict_comparison_of_equals_does_not_hold():
    assert parse_expression("a < b", "constraints").excess({"a": 2, "b": 2}.__getitem__) > 0


def test_a_constraint_names_keys_or_metrics():
    both, of_keys = read_constraints(
        ["metric('val/loss') <= 2 * key('stages.0.epochs')", "model.hidden_dim < 600"], lambda n: f"at {n}"
    )
    assert (both.metrics, both.keys) == (("val/loss",), ("stages.0.epochs",))
    assert (of_keys.metrics, of_keys.keys) == ((), ("model.hidden_dim",))
    assert both.excess({"stages.0.epochs": 2}.__getitem__, {"val/loss": 5.0}) == 1.0
    with pytest.raises(InputError, match=r"at 0: '1 < 2' names no key.*"):
        read_constraints(["1 < 2", "open('x')"], lambda n: f"at {n}")


def test_what_is_wrong_with_conditions_constraints_and_points_comes_at_once(plan_of):
    with pytest.raises(InputError) as caught:
        plan_of(
            """  constraints:
    - model.hiden_dim <= 512
    - model.dropout <= 0.9
  points:
    - {model.dropout: 0.2}
    - {model.dropout: 2}
    - {model.droput: 0.2}
    - {model.hidden_dim: 128, model.dropout: 0.1}
  space:
    model.hidden_dim: {choice: [128, 256]}
    model.dropout: {uniform: [0, 0.5], when: {model.hidden_dim: 256}}
    training.batch_size: {int: [8, 16], when: {training.epochs: 3}}
"""
        )
    text = str(caught.value)
    lines = sorted(line.split("/")[-1].split(":")[1] for line in text.splitlines())
    assert lines == ["10", "11", "12", "16", "6"]
    for words in (
        "names model.hiden_dim, no key of the experiment; did you mean model.hidden_dim?",
        "model.dropout: 2 is not among what is drawn",
        "model.droput: is not in search.space; did you mean model.dropout?",
        "model.dropout: is not drawn with these values",
        "training.epochs is not in search.space",
    ):
        assert words in text


def test_a_conditional_key_is_tried_with_the_values_that_it_waits_for(plan_of):
    head = """  space:
    model.in_chans: {choice: [1, 3]}
    model.hidden_dim: {choice: [0, 64], when: {model.in_chans: 3}}
"""
    with pytest.raises(InputError, match=r"s\.yaml:7: model.hidden_dim: 0 is not int ≥ 1"):
        plan_of(head)
    with pytest.raises(InputError, match="was in none of 200 draws"):
        plan_of(
            "  space:\n    model.dropout: {uniform: [0, 0.5]}\n"
            "    model.hidden_dim: {int: [8, 9], when: model.dropout > 0.6}\n"
        )
    with pytest.raises(InputError, match="constraints allow none of 200 draws"):
        plan_of("  constraints: [model.dropout > 0.6]\n  space: {model.dropout: {uniform: [0, 0.5]}}\n")


def test_metrics_of_constraints_and_objectives_are_known(plan_of):
    space = "  space: {model.dropout: {uniform: [0, 0.5]}}\n"
    plan_of("  constraints: [\"metric('model/params') <= 3e7\"]\n" + space)
    with pytest.raises(InputError, match=r"s.yaml:5: search.constraints.0: .*never reports 'model/parms'"):
        plan_of("  constraints: [\"metric('model/parms') <= 3e7\"]\n" + space)
    several = SPACE.replace(
        "objective: {metric: val/auroc, mode: max}",
        "objective: [{metric: val/auroc, mode: max}, {metric: val/lose, mode: min}]",
    )
    with pytest.raises(
        InputError, match=r"objective\.1\.metric.*never reports 'val/lose'; did you mean val/loss"
    ):
        plan_of(space, head=several)
    with pytest.raises(InputError, match="sampler cmaes takes one objective"):
        plan_of(space, head=several.replace("lose", "loss"), overrides=["search.sampler.name=cmaes"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  scheduler: {name: pbt}\n  seeds: [0, 1]\n", "cannot repeat them with seeds"),
        ("  seeds: [1, 1]\n", "names one twice"),
        ("  scheduler: {name: asha, grace_steps: 3}\n", "grace_steps does not go with unit: epochs"),
        ("  scheduler: {name: asha, reduction_factor: 1}\n", "reduction_factor: 1"),
        ("  from_study: nowhere\n", "is no study that `voxray tune` wrote"),
    ],
)
def test_settings_that_do_not_go_together(plan_of, text, said):
    with pytest.raises(InputError, match=said):
        plan_of(text + "  space: {model.dropout: {uniform: [0, 0.5]}}\n")


def test_a_file_is_a_search_or_an_ablation(plan_of, tmp_path):
    head = SPACE.split("search:", maxsplit=1)[0]
    with pytest.raises(InputError, match="needs a `search` block or an `ablate` block"):
        plan_of("", head=head)
    with pytest.raises(InputError, match="nothing to compare the baseline with"):
        plan_of("ablate: {seeds: [1]}\n", head=head)
    with pytest.raises(InputError, match="say when it ends: trials, seconds or gpu_hours"):
        plan_of("search: {space: {model.dropout: {fixed: 0.1}}}\n", head=head)
