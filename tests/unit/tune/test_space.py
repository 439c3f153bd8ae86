"""Distributions: what is drawn follows the law that the key names; the experiment gets real values."""

import math
import random

import optuna
import pytest
import scipy.stats
from pydantic import ValidationError

from voxray.tune.space.config import Distribution
from voxray.tune.space.draw import Space, probes, sampled

LISTS = [[1, 2], {"a": None}, "text", None, True, 2.5]


def draws(number: int = 400, **drawn) -> list:
    """Values of one key over trials with a random sampler."""
    space = Space({"key": Distribution(**drawn)})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    values = []
    for _ in range(number):
        trial = study.ask()
        values.append(space.draw(trial)["key"])
        assert space.values(trial.params)["key"] == values[-1]  # as it is read back
    return values


@pytest.mark.parametrize(
    ("drawn", "law"),
    [
        ({"uniform": (-1.0, 3.0)}, scipy.stats.uniform(-1, 4)),
        ({"loguniform": (1e-5, 1e-1)}, scipy.stats.loguniform(1e-5, 1e-1)),
        ({"normal": (5.0, 0.1)}, scipy.stats.norm(5, 0.1)),
    ],
)
def test_continuous_draws_follow_scipys_law(drawn, law):
    assert scipy.stats.kstest(draws(**drawn), law.cdf).pvalue > 0.01
    rng = random.Random(0)
    own = [sampled(Distribution(**drawn), rng) for _ in range(400)]
    assert scipy.stats.kstest(own, law.cdf).pvalue > 0.01


def test_whole_and_stepped_draws_reach_both_ends_and_nothing_else():
    assert set(draws(int=(2, 5))) == {2, 3, 4, 5}
    assert set(draws(quniform=(0.5, 1.5, 0.25))) == {0.5, 0.75, 1.0, 1.25, 1.5}
    whole = draws(logint=(1, 1000))
    assert all(isinstance(value, int) and 1 <= value <= 1000 for value in whole)
    assert sum(value <= 31 for value in whole) / len(whole) == pytest.approx(0.5, abs=0.08)  # √1000 ≈ 31.6


def test_choices_come_back_as_they_were_written():
    drawn = draws(choice=LISTS)
    assert all(any(value is one or value == one for one in LISTS) for value in drawn)
    assert {repr(value) for value in drawn} == {repr(value) for value in LISTS}


def test_a_fixed_value_is_given_and_never_drawn():
    space = Space({"a": Distribution(fixed=None), "b": Distribution(fixed=[1, 2])})
    assert space.varying == []
    assert space.draw(optuna.trial.FixedTrial({})) == {"a": None, "b": [1, 2]}


def test_probes_hold_the_ends_and_something_between():
    assert probes(Distribution(int=(1, 4))) == [1, 2, 3, 4]
    assert probes(Distribution(int=(1, 10**6)))[-1] == 10**6
    assert len(probes(Distribution(int=(1, 10**6)))) < 20
    low, high, between = probes(Distribution(uniform=(1.0, 4.0)))
    assert (low, high) == (1.0, 4.0)
    assert not between.is_integer()
    assert probes(Distribution(quniform=(0.0, 1.0, 0.3))) == pytest.approx([0.0, 0.3, 0.9])
    cut = 3.7190164854556804  # scipy.stats.norm.ppf(1 - 1e-4)
    assert [probes(Distribution(normal=(0, 1)))[i] for i in (0, 2)] == pytest.approx([-cut, cut])


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        ({}, "exactly one of choice, uniform.*found none"),
        ({"choice": [1], "fixed": 1}, "found choice, fixed"),
        ({"choice": []}, "leaves nothing to choose"),
        ({"choice": [1, 2, 1.0]}, "1 and 1.0 are the same value"),
        ({"uniform": None}, "uniform has no value"),
        ({"uniform": [2, 1]}, r"low 2.0 is above high 1.0; write \[1.0, 2.0\]"),
        ({"int": [3, 1]}, "low 3 is above high 1"),
        ({"int": [1, 2, 3]}, r"has 3 numbers; write \[low, high\]"),
        ({"loguniform": [0, 1]}, "low 0.0 has no logarithm; use a low above 0, or `uniform`"),
        ({"logint": [0, 8]}, "or `int`"),
        ({"quniform": [0, 1]}, r"write \[low, high, step\]"),
        ({"quniform": [0, 1, 2]}, "step 2.0 must be above 0 and at most"),
        ({"normal": [0, 0]}, "the second above 0"),
        ({"uniform": [0, math.inf]}, "finite"),
        ({"uniform": ["low", 1]}, "valid number"),
        ({"chioce": [1]}, "chioce"),
    ],
)
def test_a_range_that_holds_nothing_is_refused(drawn, said):
    with pytest.raises(ValidationError, match=said):
        Distribution.model_validate(drawn)
