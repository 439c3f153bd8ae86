"""Asynchronous HyperBand: ASHA brackets, each with a longer grace, so that slow starters have a chance.

Bracket s has its first rung at grace · η^s. Its share of the trials is HyperBand's (Li et al.,
arXiv:1603.06560, algorithm 1): ⌈(s_max + 1) / (h + 1) · η^h⌉ with h = s_max − s halvings left. Which bracket
a trial is in depends on its index alone.
"""

import math

from voxray.tune.schedulers.asha import Asha
from voxray.tune.schedulers.policy import TOLERANCE, Decision, Result


class HyperBand:
    """Trials 0, 1, 2 … dealt to the brackets so that at every moment the shares are nearly right."""

    def __init__(self, grace: float, reduction_factor: float, max_time: float) -> None:
        """`max_time`: how long a whole trial trains; it says how many brackets there are."""
        halvings = math.log(max(1.0, max_time / grace), reduction_factor)
        most = math.floor(halvings + TOLERANCE)
        self.brackets = [
            Asha(grace * reduction_factor**bracket, reduction_factor) for bracket in range(most + 1)
        ]
        self.weights = [
            math.ceil((most + 1) / (left + 1) * reduction_factor**left - TOLERANCE)
            for left in range(most, -1, -1)
        ]
        self._dealt: list[int] = []

    def bracket_of(self, index: int) -> int:
        """Return the bracket of a trial: the one that has had the least of its share so far."""
        total = sum(self.weights)
        while len(self._dealt) <= index:
            dealt = len(self._dealt) + 1
            owed = [
                weight * dealt / total - self._dealt.count(bracket)
                for bracket, weight in enumerate(self.weights)
            ]
            self._dealt.append(max(range(len(owed)), key=owed.__getitem__))
        return self._dealt[index]

    def decide(self, result: Result) -> Decision:
        """Let the trial's bracket decide."""
        return self.brackets[self.bracket_of(result.index)].decide(result)
