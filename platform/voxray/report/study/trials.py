"""One trial as the journal tells it: values, scores, seeds, constraints, its curve, and when it ran."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

ATTRIBUTE_OF_A_STEP = "at/"


@dataclass(frozen=True)
class Objective:
    """A metric that the search looks at."""

    metric: str
    maximize: bool

    @property
    def sign(self) -> int:
        """1 where lower is better, −1 where higher is: sign · score is to be small."""
        return -1 if self.maximize else 1

    @property
    def better(self) -> str:
        """`higher` or `lower`."""
        return "higher" if self.maximize else "lower"


@dataclass(frozen=True)
class Point:
    """One evaluation of a trial. `epochs` is None where the journal holds updates only."""

    step: int
    epochs: float | None
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class Exploit:
    """A member of a population (PBT) went on from another's state, with other values."""

    epochs: float
    donor: int
    values: dict[str, Any]

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Self:
        """Return what the journal holds of one."""
        return cls(float(saved["epochs"]), int(saved["from"]), dict(saved.get("values") or {}))


@dataclass(frozen=True)
class Trial:
    """One trial of the journal. `is_done` is False for one that runs, or was cut short and runs again.

    `scores` are the objectives' in their order: a complete trial's, or a pruned one's last.
    """

    index: int
    number: int  # Optuna's
    state: str
    scores: tuple[float, ...] | None
    values: dict[str, Any]
    reason: str
    is_done: bool
    start: datetime | None = None
    end: datetime | None = None
    step: int | None = None  # of the scores
    seeds: tuple[tuple[float | None, ...], ...] = ()  # scores of each seed, where there are several
    violated: tuple[str, ...] = ()  # names of the constraints that do not hold
    curve: tuple[Point, ...] = ()
    exploits: tuple[Exploit, ...] = ()
    from_study: str = ""  # taken from this earlier study; then `index` is its number in the journal
    gpus: float | None = None

    def score(self, objective: int) -> float:
        """Return one objective's score, of a trial that has scores."""
        assert self.scores is not None
        return self.scores[objective]

    @property
    def value(self) -> float | None:
        """The first objective's score."""
        return self.scores[0] if self.scores else None

    @property
    def seconds(self) -> float | None:
        """How long it ran."""
        return (self.end - self.start).total_seconds() if self.start and self.end else None

    @property
    def is_feasible(self) -> bool:
        """Whether all constraints hold."""
        return not self.violated

    @property
    def values_at_the_end(self) -> dict[str, Any]:
        """The values that it ended with: a population's member changes them on its way."""
        changed = {path: value for exploit in self.exploits for path, value in exploit.values.items()}
        return self.values | changed

    @property
    def shown_state(self) -> str:
        """The state as tables show it."""
        if not self.is_done:
            return f"{self.state}, not done"
        return self.state if self.is_feasible else f"{self.state}, infeasible"

    def spread(self, objective: int) -> float | None:
        """Return the standard deviation (n − 1) of an objective's score over the seeds; None below two."""
        known = [seed[objective] for seed in self.seeds if len(seed) > objective]
        scores = [score for score in known if score is not None and math.isfinite(score)]
        if len(scores) < 2:
            return None
        mean = math.fsum(scores) / len(scores)
        return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1))


def non_dominated(trials: list[Trial], objectives: tuple[Objective, ...]) -> list[Trial]:
    """Return the trials that no other one beats: at least as good in every objective and better in one."""
    losses = [
        tuple(each.sign * score for each, score in zip(objectives, trial.scores or (), strict=True))
        for trial in trials
    ]
    return [
        trial
        for trial, loss in zip(trials, losses, strict=True)
        if not any(
            other != loss and all(o <= own for o, own in zip(other, loss, strict=True)) for other in losses
        )
    ]
