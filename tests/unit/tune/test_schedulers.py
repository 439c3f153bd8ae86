"""Stopping policies against Ray's own ASHA and median rule, Optuna's sorting, brute force."""

import math
import random

import numpy as np
import optuna
import pytest
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance
from optuna.study._multi_objective import _fast_non_domination_rank

from voxray.tune.schedulers.asha import Asha
from voxray.tune.schedulers.hyperband import HyperBand
from voxray.tune.schedulers.median import MedianStopping
from voxray.tune.schedulers.policy import Decision, Result, standings

STOP, CONTINUE = Decision.STOP, Decision.CONTINUE
NAN = math.nan


# --- who is better


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_fronts_are_those_of_optuna(num_objectives, seed):
    points = np.random.default_rng(seed).integers(0, 12, (60, num_objectives)).astype(float)  # with ties
    ours = [front for front, _ in standings([tuple(point) for point in points])]
    assert ours == list(_fast_non_domination_rank(points))


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_crowding_distances_are_those_of_optuna(num_objectives):
    points = np.random.default_rng(7).random((40, num_objectives))
    trials = [optuna.trial.create_trial(values=list(point)) for point in points]
    found = standings([tuple(point) for point in points])
    for front in {front for front, _ in found}:
        members = [i for i, standing in enumerate(found) if standing[0] == front]
        theirs = _calc_crowding_distance([numbered(trials[i], i) for i in members])
        if len(members) > 1:
            assert {i: -found[i][1] for i in members} == pytest.approx(dict(theirs))
        else:
            assert found[members[0]][1] == -math.inf


def numbered(trial, number):
    trial.number = number
    return trial


def test_one_objective_is_its_order_and_equal_scores_are_equal():
    found = standings([(3.0,), (1.0,), (3.0,), (2.0,)])
    assert found[1] < found[3] < found[0] == found[2]


def test_whoever_has_a_score_that_is_no_number_is_worst():
    found = standings([(5.0, 5.0), (NAN, 0.0), (1.0, 9.0), (0.0, -math.inf)])
    assert found[1] == found[3] > max(found[0], found[2])
    assert standings([]) == []


# --- ASHA


def stream(seed: int, num_trials: int, length: int) -> list[Result]:
    """Results of trials that run side by side, in a random order of arrival; all scores differ."""
    rng = random.Random(seed)
    left = dict.fromkeys(range(num_trials), 0)
    results = []
    while left:
        index = rng.choice(sorted(left))
        left[index] += 1
        results.append(Result(index, float(left[index]), (rng.random() + index / num_trials,)))
        if left[index] == length:
            del left[index]
    return results


def decided(policy, results: list[Result]) -> tuple[dict[int, int], list[Result]]:
    """Return {index: time of its stop}, and the results that were told: a stopped trial reports no more."""
    stopped, told = {}, []
    for result in results:
        if result.index in stopped:
            continue
        told.append(result)
        if policy.decide(result) is STOP:
            stopped[result.index] = result.time
    return stopped, told


@pytest.mark.parametrize("reduction_factor", [2, 3, 4])
@pytest.mark.parametrize("grace", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_asha_decides_as_ray_does_where_ray_compares_with_a_trial(reduction_factor, grace, seed):
    """Ray stops below a percentile of those who were there before, interpolated between two of them; a rank
    has nothing between two. With m before it and (m − 1) / η whole, the percentile is one of them and both
    agree; else they may differ for who is between the two alone.
    """
    from ray.tune.schedulers.async_hyperband import _Bracket

    results, asha = stream(seed, 40, 30), Asha(grace, reduction_factor)
    rungs: dict[int, dict[int, float]] = {}
    num_compared, num_interpolated, alive = 0, 0, set(range(40))
    for result in results:
        if result.index not in alive:
            continue
        rung = asha.rung_at(result.time)
        before = rungs.setdefault(rung, {})
        decision = asha.decide(result)
        if rung < 0 or result.index in before:
            assert decision is CONTINUE
            continue
        bracket = _Bracket(grace, 10_000, reduction_factor, 0)
        cutoff = bracket.cutoff({i: -score for i, score in before.items()})
        theirs = STOP if cutoff is not None and -result.scores[0] < cutoff else CONTINUE
        better = sum(score < result.scores[0] for score in before.values())
        band = (len(before) - 1) / reduction_factor
        if before and math.floor(band) < better <= math.ceil(band):
            num_interpolated += 1
        else:
            num_compared += 1
            assert decision is theirs
        before[result.index] = result.scores[0]
        if decision is STOP:
            alive.discard(result.index)
    assert num_compared > 30
    assert num_interpolated < num_compared / 2


@pytest.mark.parametrize("num_objectives", [1, 2])
def test_asha_keeps_the_best_share_of_a_rung_by_brute_force(num_objectives):
    rng = random.Random(3)
    asha, reached = Asha(1, 3), []
    for index in range(30):
        scores = tuple(rng.random() for _ in range(num_objectives))
        reached.append(scores)
        own = standings(reached)[-1]
        num_better = sum(standing < own for standing in standings(reached))
        kept = num_better < len(reached) / 3
        assert (asha.decide(Result(index, 1.0, scores)) is CONTINUE) == kept
    assert list(asha.rungs[0].values()) == reached


def test_the_worked_rungs():
    """η = 3, grace 1: rungs at 1, 3, 9. Hand-worked: the first goes on, then the best third, rounded up."""
    asha = Asha(1.0, 3.0)
    assert [asha.rung_at(time) for time in (0.5, 1, 2.9, 3 - 1e-12, 3, 8, 9, 27)] == [-1, 0, 0, 1, 1, 1, 2, 3]
    at_first = [(0, 5.0), (1, 6.0), (2, 4.0), (3, 4.5), (4, 5.5), (5, NAN), (6, 4.2)]
    said = [asha.decide(Result(index, 1.0, (score,))) for index, score in at_first]
    #       1 of 1, 2nd of 2, 1st of 3, 2nd of 4, 4th of 5, last of 6, 2nd of 7 (two are better than a third)
    assert said == [CONTINUE, STOP, CONTINUE, CONTINUE, STOP, STOP, CONTINUE]
    assert asha.decide(Result(2, 2.0, (99.0,))) is CONTINUE  # between two rungs
    assert asha.decide(Result(2, 3.0, (3.0,))) is CONTINUE
    assert asha.decide(Result(3, 3.0, (3.5,))) is STOP


def test_a_resumed_trial_repeats_no_rung_and_one_that_jumps_is_compared_at_the_last():
    asha = Asha(1.0, 2.0)
    for index, score in ((0, 1.0), (1, 0.5)):
        asha.decide(Result(index, 1.0, (score,)))
    assert asha.decide(Result(0, 1.0, (9.0,))) is CONTINUE  # told again, after a kill
    assert asha.rungs == {0: {0: (1.0,), 1: (0.5,)}}
    assert asha.decide(Result(2, 4.0, (0.7,))) is CONTINUE  # passes 1 and 2 unseen
    assert asha.rungs == {0: {0: (1.0,), 1: (0.5,)}, 2: {2: (0.7,)}}
    assert asha.decide(Result(2, 5.0, (9.0,))) is CONTINUE


def test_asha_of_two_objectives_keeps_the_ends_of_the_front_before_its_middle():
    """η = 2: half goes on. The second end is as good as the first; a middle point has two before it."""
    asha = Asha(1, 2)
    said = [asha.decide(Result(i, 1, s)) for i, s in enumerate([(0.0, 4.0), (4.0, 0.0), (2.0, 2.0)])]
    assert said == [CONTINUE, CONTINUE, STOP]
    for index in range(3, 5):
        assert asha.decide(Result(index, 1, (9.0, 9.0 + index))) is STOP  # dominated
    assert asha.decide(Result(6, 1, (1.0, 1.0))) is CONTINUE  # the middle again, but a better half of six


# --- HyperBand


def test_brackets_and_their_shares_are_those_of_hyperband():
    """R = 81, η = 3: by algorithm 1 the brackets begin with 81, ⌈27 · 5/4⌉, ⌈9 · 5/3⌉, ⌈3 · 5/2⌉ and 5."""
    hyperband = HyperBand(1.0, 3.0, 81.0)
    assert [bracket.grace for bracket in hyperband.brackets] == [1, 3, 9, 27, 81]
    assert hyperband.weights == [81, 34, 15, 8, 5]
    dealt = [hyperband.bracket_of(index) for index in range(143)]
    assert [dealt.count(bracket) for bracket in range(5)] == hyperband.weights
    assert dealt == [HyperBand(1.0, 3.0, 81.0).bracket_of(index) for index in range(143)]
    assert set(dealt[:20]) == {0, 1, 2, 3, 4}  # every bracket early


def test_trials_are_compared_inside_their_bracket():
    hyperband = HyperBand(1.0, 3.0, 9.0)
    first = {bracket: [i for i in range(60) if hyperband.bracket_of(i) == bracket] for bracket in range(3)}
    a, b = first[0][:2]
    assert hyperband.decide(Result(a, 1.0, (0.1,))) is CONTINUE
    assert hyperband.decide(Result(b, 1.0, (0.2,))) is STOP
    late = first[1][0]
    assert hyperband.decide(Result(late, 1.0, (9.9,))) is CONTINUE  # its grace is 3
    assert hyperband.decide(Result(late, 3.0, (9.9,))) is CONTINUE  # the first of its rung
    assert len(HyperBand(5.0, 3.0, 3.0).brackets) == 1


# --- median


def median_by_hand(results: list[Result], grace: float, least: int) -> dict[int, float]:
    """Vizier's rule from its words, on the whole table of scores."""
    table = {index: {} for index in {result.index for result in results}}
    stopped = {}
    for result in results:
        if result.index in stopped:
            continue
        table[result.index][result.time] = result.scores[0]
        if result.time < grace:
            continue
        others = [curve for index, curve in table.items() if index != result.index and curve]
        others = [curve for curve in others if max(curve) >= result.time]
        averages = [np.mean([v for t, v in curve.items() if t <= result.time]) for curve in others]
        if len(averages) >= least and min(table[result.index].values()) > np.median(averages):
            stopped[result.index] = result.time
    return stopped


@pytest.mark.parametrize("seed", range(5))
def test_median_stops_whom_the_rule_stops(seed):
    results = stream(seed, 20, 12)
    stopped, _ = decided(MedianStopping(3, 3), results)
    assert stopped == median_by_hand(results, 3, 3)
    assert 3 < len(stopped) < 17


@pytest.mark.parametrize("seed", range(3))
def test_median_decides_as_ray_does(seed):
    """With a grace of one report: Ray leaves what was before the grace out of the averages."""
    from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

    class Controller:
        def get_live_trials(self):
            return []

    class Trial:
        def __init__(self, index):
            self.trial_id = str(index)

    trials = [Trial(index) for index in range(20)]
    theirs = MedianStoppingRule("t", "score", "min", grace_period=1, min_samples_required=3)
    theirs.set_search_properties(None, None)
    results = stream(seed, 20, 12)
    stopped, told = decided(MedianStopping(1, 3), results)
    for result in told:
        record = {"t": result.time, "score": result.scores[0]}
        action = theirs.on_trial_result(Controller(), trials[result.index], record)
        assert (action == TrialScheduler.STOP) == (stopped.get(result.index) == result.time)


def test_median_takes_a_result_once_and_a_nan_as_the_worst():
    policy = MedianStopping(1, 2)
    for index in (0, 1, 2):
        assert policy.decide(Result(index, 1.0, (float(index),))) is (STOP if index == 2 else CONTINUE)
    assert policy.decide(Result(3, 1.0, (NAN,))) is STOP
    assert policy.decide(Result(0, 1.0, (100.0,))) is CONTINUE  # told before
    assert (
        policy.decide(Result(0, 2.0, (100.0,))) is CONTINUE
    )  # its best is what counts, and nobody got so far
