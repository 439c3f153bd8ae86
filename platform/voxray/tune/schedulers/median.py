"""Median stopping, Google Vizier's rule (Golovin et al. 2017, doi:10.1145/3097983.3098043, section 3.2.2).

A trial stops at time t when its best value up to t is worse than the median of the others' running averages
up to t. Others are all that have got as far as t, those that still run too, as in Ray Tune.
"""

import statistics

from voxray.tune.schedulers.policy import Decision, Result, comparable, reaches


class MedianStopping:
    """One objective. Before `grace`, and with fewer than `least` others, nobody stops."""

    def __init__(self, grace: float, least: int) -> None:
        """`grace` > 0 in the results' time, `least` ≥ 1."""
        self.grace, self.least = grace, least
        self._curves: dict[int, list[tuple[float, float]]] = {}  # index → (time, score), in order

    def decide(self, result: Result) -> Decision:
        """Stop a trial whose best is worse than the median of the others' averages."""
        curve = self._curves.setdefault(result.index, [])
        if curve and curve[-1][0] >= result.time:
            return Decision.CONTINUE
        curve.append((result.time, comparable(result.scores)[0]))
        if not reaches(result.time, self.grace):
            return Decision.CONTINUE
        averages = [
            statistics.fmean(score for time, score in other if reaches(result.time, time))
            for index, other in self._curves.items()
            if index != result.index and reaches(other[-1][0], result.time)
        ]
        if len(averages) < self.least:
            return Decision.CONTINUE
        best = min(score for _, score in curve)
        return Decision.STOP if best > statistics.median(averages) else Decision.CONTINUE
