"""An ablation's statistics against scipy, hand-worked tables and simulated ones."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from voxray.tune.ablation.statistics import (
    NUM_RESAMPLES,
    bootstrap_interval,
    compare,
    hedges_g,
    holm,
    paired_t,
)

LOWER, HIGHER = 1, -1


def by_seed(*scores: float) -> dict[int, float]:
    return dict(enumerate(scores))


def planted(seed: int) -> dict[str, dict[int, float]]:
    """Five seeds: the baseline, two arms that only differ by noise, and one that is three sd better."""
    rng = np.random.default_rng(seed)
    runs = rng.normal(0.80, 0.02, 5)  # what the seed itself does to all arms
    shifts = {"baseline": 0.0, "null1": 0.0, "null2": 0.0, "planted": 0.06}
    return {arm: by_seed(*(runs + shift + rng.normal(0, 0.01, 5))) for arm, shift in shifts.items()}


def test_the_written_statistics_are_scipys():
    arms = planted(0)
    rows = {row.arm: row for row in compare("baseline", arms, HIGHER)}
    base = np.array(list(arms["baseline"].values()))
    for arm in ("null1", "null2", "planted"):
        row, ours = rows[arm], np.array(list(arms[arm].values()))
        expected = scipy.stats.ttest_rel(ours, base)
        assert row.t == pytest.approx(expected.statistic, rel=1e-9)
        assert row.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert row.df == expected.df == 4
        # the same in closed form
        d = ours - base
        assert row.t == pytest.approx(d.mean() / (d.std(ddof=1) / math.sqrt(5)), rel=1e-9)
        assert (row.mean, row.sd) == (pytest.approx(ours.mean()), pytest.approx(scipy.stats.tstd(ours)))
        assert row.wins == sum(d > 0)
    assert rows["planted"].verdict == "better"
    assert rows["planted"].low > 0
    assert [rows[arm].verdict for arm in ("baseline", "null1", "null2")] == ["", "", ""]
    assert rows["baseline"].difference is None


def test_lower_is_better_turns_verdict_and_wins_around():
    arms = planted(0)
    higher = compare("baseline", arms, HIGHER)[-1]
    lower = compare("baseline", arms, LOWER)[-1]
    assert (higher.verdict, lower.verdict) == ("better", "worse")
    assert higher.wins == 5
    assert lower.wins == 0
    assert higher.difference == lower.difference > 0


def test_holm_is_a_hand_worked_table():
    # 0.01·4, 0.02·3, max(0.03·2, 0.06), max(0.04·1, 0.06), in any order of the arms
    assert holm(np.array([0.01, 0.02, 0.03, 0.04])) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm(np.array([0.04, 0.01, 0.03, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    # 0.005·3, 0.011·2, 0.9·1; at most 1; equal ones stay equal
    assert holm(np.array([0.9, 0.005, 0.011])) == pytest.approx([0.9, 0.015, 0.022])
    assert holm(np.array([0.5, 0.7])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([0.02, 0.02, 0.5])) == pytest.approx([0.06, 0.06, 0.5])
    assert holm(np.array([0.03])) == pytest.approx([0.03])
    assert holm(np.array([])).shape == (0,)
    table = np.array([[0.01, 0.02, 0.03], [0.9, 0.005, 0.011]])
    assert holm(table) == pytest.approx(np.stack([holm(row) for row in table]))


def test_holms_correction_is_over_all_arms():
    rows = compare("baseline", planted(0), HIGHER)[1:]
    assert [row.p_holm for row in rows] == pytest.approx(holm(np.array([row.p for row in rows])))


def test_a_verdict_needs_more_than_its_own_p():
    base = by_seed(0.0, 0.0, 0.0, 0.0, 0.0)
    arm = by_seed(1.0, 2.0, 3.0, 4.0, 5.0)  # t = 3 / (1.5811 / 2.2361), p = 0.0132
    for num, verdict in ((3, "better"), (4, "")):  # 3 p = 0.0397, 4 p = 0.0529
        rows = compare("b", {"b": base, **{f"arm{i}": arm for i in range(num)}}, HIGHER)[1:]
        assert [row.p for row in rows] == pytest.approx([0.013236] * num, rel=1e-4)
        assert [row.verdict for row in rows] == [verdict] * num


def test_a_null_arm_is_seldom_called_significant_and_a_planted_effect_is_found():
    """2,000 tables of four arms and five seeds: any null arm of a table counts as one error of the family.

    100 of 2,000 are expected at most; 124 (6.2 %) is 2.5 standard deviations of a binomial above that.
    """
    rng = np.random.default_rng(5)
    num, arms, seeds = 2000, 4, 5
    runs = rng.normal(0, 0.02, (num, 1, seeds))
    scores = runs + rng.normal(0, 0.01, (num, arms + 1, seeds))
    _, p = paired_t(scores[:, 1:], scores[:, :1])
    assert (holm(p) < 0.05).any(axis=1).sum() <= 0.062 * num
    scores[:, 1] += 0.05  # a planted effect: the family is now the three others
    _, p = paired_t(scores[:, 1:], scores[:, :1])
    adjusted = holm(p)
    assert (adjusted[:, 1:] < 0.05).any(axis=1).sum() <= 0.062 * num
    assert (adjusted[:, 0] < 0.05).mean() > 0.8


def test_the_interval_is_scipys_percentile_interval_at_the_expanded_level():
    differences = np.random.default_rng(3).normal(0.01, 0.02, 8)
    tail = scipy.stats.norm.cdf(scipy.stats.t.ppf(0.025, 7) * math.sqrt(8 / 7))
    expected = scipy.stats.bootstrap(
        (differences,),
        np.mean,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=5 * NUM_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = bootstrap_interval(differences)
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.02 * width)
    assert high == pytest.approx(expected.high, abs=0.02 * width)
    assert bootstrap_interval(differences) == (low, high)  # seeded
    assert (low, high) != bootstrap_interval(differences, seed=1)


def test_the_interval_of_six_pairs_is_that_of_all_their_resamples():
    differences = np.array([0.31, -0.127, 0.418, 0.93, 0.223, 0.551])
    means = np.array(list(itertools.product(differences, repeat=6))).mean(axis=1)  # all 46,656
    tail = scipy.stats.norm.cdf(scipy.stats.t.ppf(0.025, 5) * math.sqrt(6 / 5))
    expected = np.quantile(means, [tail, 1 - tail])
    assert bootstrap_interval(differences) == pytest.approx(expected, abs=0.15 * means.std())


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """10 pairs: 93 % measured over 1,500 cases; a plain percentile interval holds 90 %."""
    rng = np.random.default_rng(0)
    held = [low <= 0 <= high for low, high in (bootstrap_interval(rng.normal(size=10)) for _ in range(300))]
    assert 0.91 <= np.mean(held) <= 0.97


def test_the_effect_size_is_cohens_with_hedges_correction():
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    d_z = 3 / math.sqrt(2.5)
    exact = math.gamma(2) / (math.sqrt(2) * math.gamma(1.5))  # J(4) = 0.7979
    assert exact == pytest.approx(1 - 3 / (4 * 4 - 1), abs=3e-3)  # Hedges' own approximation
    assert hedges_g(differences) == pytest.approx(d_z * exact)
    assert hedges_g(differences[:2]) is None


def test_what_cannot_be_said_is_left_out_with_the_reason():
    arms = {
        "baseline": {0: 0.5, 1: 0.6, 2: 0.7},
        "one seed": {0: 0.55},
        "no pair": {7: 0.5, 8: 0.6},
        "none": {},
        "shifted": {0: 0.6, 1: 0.7, 2: 0.8},  # equal but for rounding
        "same": {0: 0.5, 1: 0.6, 2: 0.7},
        "two of three": {0: 0.6, 2: 0.75},
        "whole": {2: 0.72, 0: 0.53, 1: 0.59},
    }
    rows = {row.arm: row for row in compare("baseline", arms, HIGHER)}
    assert rows["one seed"].difference == pytest.approx(0.05)
    assert (rows["one seed"].pairs, rows["one seed"].sd, rows["one seed"].low) == (1, None, None)
    assert "one pair" in rows["one seed"].note
    assert (rows["no pair"].n, rows["no pair"].pairs, rows["no pair"].mean) == (2, 0, pytest.approx(0.55))
    assert "no pair" in rows["no pair"].note
    assert (rows["none"].mean, rows["none"].n) == (None, 0)
    for arm, difference in (("shifted", 0.1), ("same", 0.0)):
        assert rows[arm].difference == pytest.approx(difference)
        assert rows[arm].t is rows[arm].p is rows[arm].low is None
        assert "all differences are equal" in rows[arm].note
    assert rows["two of three"].pairs == 2
    assert rows["two of three"].p is not None
    assert rows["two of three"].effect is None
    # pairs are by seed, whatever the order
    pairs = [0.53, 0.59, 0.72], [0.5, 0.6, 0.7]
    assert rows["whole"].t == pytest.approx(scipy.stats.ttest_rel(*pairs).statistic, rel=1e-9)
    # the correction is over the arms that have a test
    tested = [row for row in rows.values() if row.p is not None]
    assert len(tested) == 2
    assert [row.p_holm for row in tested] == pytest.approx(holm(np.array([row.p for row in tested])))


def test_differences_that_vary_little_but_really_are_tested():
    base = by_seed(0.8, 0.8, 0.8)
    arm = {seed: score + 1e-6 + 1e-8 * seed for seed, score in base.items()}
    row = compare("b", {"b": base, "arm": arm}, HIGHER)[1]
    assert row.p is not None
    assert row.verdict == "better"
