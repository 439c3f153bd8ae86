"""Asynchronous successive halving (ASHA; Li et al., arXiv:1810.05934): who is not among the best 1/η stops.

The form that stops and never pauses, as Ray Tune's and Syne Tune's: a trial that reaches rung k, at time
grace · η^k, is compared with all that were there before it. Several objectives are compared by non-dominated
rank and crowding distance (arXiv:2106.12639), so a rank decides and no value between two others.
"""

from voxray.tune.schedulers.policy import Decision, Result, Scores, reaches, standings


class Asha:
    """Rungs at grace, grace · η, grace · η² … without an upper end."""

    def __init__(self, grace: float, reduction_factor: float) -> None:
        """`grace` > 0 in the results' time; `reduction_factor` η > 1."""
        self.grace, self.reduction_factor = grace, reduction_factor
        self.rungs: dict[int, dict[int, Scores]] = {}  # rung → index → scores when it was reached
        self._highest: dict[int, int] = {}  # index → the highest rung that it has reached

    def rung_at(self, time: float) -> int:
        """Return the highest rung that is reached at a time, −1 before the first."""
        rung, milestone = -1, self.grace
        while reaches(time, milestone):
            rung, milestone = rung + 1, milestone * self.reduction_factor
        return rung

    def decide(self, result: Result) -> Decision:
        """Stop a trial that reaches a rung and has n / η or more better ones there, of n with itself.

        The first of a rung goes on. A trial that passes several rungs at once is compared at the last: at the
        others its score would be one of a later time.
        """
        rung = self.rung_at(result.time)
        if rung <= self._highest.get(result.index, -1):
            return Decision.CONTINUE
        self._highest[result.index] = rung
        reached = self.rungs.setdefault(rung, {})
        reached[result.index] = result.scores
        *others, own = standings(list(reached.values()))
        num_better = sum(other < own for other in others)
        return Decision.CONTINUE if num_better < len(reached) / self.reduction_factor else Decision.STOP
