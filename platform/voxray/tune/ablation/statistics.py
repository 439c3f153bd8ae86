"""What an ablation's scores say: spread, paired differences to the baseline, tests, the size of the effect.

Seeds are paired: an arm's score minus the baseline's of the same seed. A pair of which one cell is missing is
left out.
"""

# scipy annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportMissingTypeStubs=false

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95
ALPHA = 0.05  # of the whole family of arms: what Holm's correction holds
NUM_RESAMPLES = 20_000
# Differences that vary by less than float rounding of the scores are equal: a t of 10^16 would be noise.
EQUAL = 1e-10

Scores = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Comparison:
    """One arm. What cannot be said is None, and `note` says why; `difference` is arm − baseline.

    `low` and `high` are the bootstrap interval of the mean difference; `t`, `df` and `p` the paired t-test of
    two sides; `p_holm` is p after Holm's correction over all arms that have one; `effect` is Hedges' g_z;
    `wins` counts the pairs in which the arm is better.
    """

    arm: str
    scores: dict[int, float]
    mean: float | None = None
    sd: float | None = None
    pairs: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    t: float | None = None
    df: int | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    wins: int | None = None
    verdict: str = ""  # better | worse, where p_holm < ALPHA
    note: str = ""

    @property
    def n(self) -> int:
        """How many seeds have a score."""
        return len(self.scores)


def compare(baseline: str, arms: Mapping[str, Scores], sign: int) -> list[Comparison]:
    """Return one comparison per arm, in order, the baseline's without a difference.

    `sign` is 1 where lower is better and −1 where higher is.
    """
    against = arms[baseline]
    found = [
        _compare(name, scores, None if name == baseline else against, sign) for name, scores in arms.items()
    ]
    adjusted = holm(np.array([row.p for row in found if row.p is not None]))
    corrected = iter(adjusted.tolist())
    return [
        row if row.p is None else _with_verdict(replace(row, p_holm=next(corrected)), sign) for row in found
    ]


def _compare(name: str, scores: Scores, against: Scores | None, sign: int) -> Comparison:
    values = np.array(list(scores.values()))
    row = Comparison(
        name,
        dict(scores),
        mean=float(values.mean()) if values.size else None,
        sd=float(values.std(ddof=1)) if values.size > 1 else None,
    )
    if against is None:
        return row
    seeds = [seed for seed in scores if seed in against]
    ours, theirs = np.array([scores[s] for s in seeds]), np.array([against[s] for s in seeds])
    if not seeds:
        return replace(row, note="no pair with the baseline")
    differences = ours - theirs
    row = replace(
        row,
        pairs=len(seeds),
        difference=float(differences.mean()),
        wins=int((sign * differences < 0).sum()),
    )
    if len(seeds) == 1:
        return replace(row, note="one pair: nothing can be tested")
    if np.ptp(differences) <= EQUAL * max(np.abs(ours).max(), np.abs(theirs).max()):
        return replace(row, note="all differences are equal: nothing can be tested")
    low, high = bootstrap_interval(differences)
    t, p = paired_t(ours, theirs)
    return replace(
        row, low=low, high=high, t=float(t), df=len(seeds) - 1, p=float(p), effect=hedges_g(differences)
    )


def _with_verdict(row: Comparison, sign: int) -> Comparison:
    assert row.p_holm is not None
    assert row.difference is not None
    if row.p_holm >= ALPHA:
        return row
    return replace(row, verdict="better" if sign * row.difference < 0 else "worse")


def paired_t(arm_xN: np.ndarray, baseline_xN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return t and the two-sided p of the paired t-test over the last axis (N pairs ≥ 2)."""
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal differences: see EQUAL
        result = ttest_rel(arm_xN, baseline_xN, axis=-1)
    return np.asarray(result.statistic), np.asarray(result.pvalue)


def holm(p_xM: np.ndarray) -> np.ndarray:
    """Return p values after Holm's step-down correction over the last axis of M hypotheses.

    The k-th smallest of M is multiplied by M − k + 1, is at least as large as the one before it and at most 1
    (Holm 1979, Scandinavian Journal of Statistics 6, 65–70).
    """
    num = p_xM.shape[-1]
    order = np.argsort(p_xM, axis=-1)
    scaled = np.take_along_axis(p_xM, order, -1) * np.arange(num, 0, -1)
    stepped = np.minimum(np.maximum.accumulate(scaled, axis=-1), 1.0)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, -1)
    return adjusted


def bootstrap_interval(differences_N: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the ends of the bootstrap interval of the mean difference: pairs drawn anew, N ≥ 2, seeded.

    It is the expanded percentile interval (Hesterberg 2015, The American Statistician 69, 371–386): its ends
    are percentiles further out, by √(N/(N−1)) and by Student's t instead of the normal quantile, since with
    few pairs the plain one is too narrow. Of 1,500 simulated cases with normal differences, 95 % intervals
    held the truth in 91 % (N = 5) and 93 % (N = 10), where the plain percentile interval and BCa did in 83 %
    and 90 %. With N = 3 it spans all differences and holds 75 %, as do the other two.
    """
    from scipy.stats import norm, t

    num = len(differences_N)
    draws = np.random.default_rng(seed).integers(num, size=(NUM_RESAMPLES, num))
    means = differences_N[draws].mean(axis=1)
    outer = t.ppf((1 - CONFIDENCE) / 2, num - 1) * math.sqrt(num / (num - 1))
    tail = float(norm.cdf(outer))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def hedges_g(differences_N: np.ndarray) -> float | None:
    """Return Cohen's d_z, mean / sd of the differences, times Hedges' exact small-sample correction.

    J(m) = Γ(m/2) / (√(m/2) Γ((m−1)/2)) with m = N − 1 (Hedges 1981, Journal of Educational Statistics 6,
    107–128); with two pairs J is 0, so there is no effect size.
    """
    freedom = len(differences_N) - 1
    if freedom < 2:
        return None
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float(differences_N.mean() / differences_N.std(ddof=1)) * correction
