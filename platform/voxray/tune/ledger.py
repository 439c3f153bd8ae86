"""What remembers the trials of a search, or the cells of an ablation: `Ledger`, and its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from voxray.tune.config import ObjectiveConfig
from voxray.tune.job import Job


@dataclass(frozen=True)
class Suggestion:
    """The values of one logical trial: dotted path of the experiment → value."""

    index: int
    values: dict[str, Any]


@dataclass(frozen=True)
class TrialRow:
    """One logical trial that is done. `scores` are the objectives' values, in their order.

    A pruned trial has those of its last evaluation; a failed one None, and `reason` says why.
    """

    index: int
    state: str  # complete | pruned | fail
    scores: tuple[float, ...] | None
    step: int | None  # of the scores
    seconds: float
    values: dict[str, Any]
    reason: str
    is_feasible: bool = True

    @property
    def value(self) -> float | None:
        """The first objective's value."""
        return self.scores[0] if self.scores else None


class Ledger(Protocol):
    """Trials by index, 0 … : which are left, which run, how those that are done went."""

    @property
    def objectives(self) -> Sequence[ObjectiveConfig]:
        """What is looked at, in the order of a row's scores."""
        ...

    def remaining(self) -> list[int]:
        """Return the indices that are neither done nor running, in the order to run them; empty when no more
        may begin.
        """
        ...

    def ask(self, index: int) -> Suggestion:
        """Begin a trial."""
        ...

    def report(self, index: int, record: Mapping[str, Any]) -> None:
        """Take an evaluation of the trial's first run: its numbers, `step` and `epochs`."""
        ...

    def finish(self, index: int, job: Job) -> TrialRow:
        """End a trial whose runs have all ended by themselves."""
        ...

    def crash(self, index: int, reason: str) -> TrialRow:
        """End a trial that failed."""
        ...

    def stop(self, index: int) -> TrialRow:
        """End a trial that a scheduler stopped."""
        ...

    def cut_short(self) -> list[int]:
        """Let go of all that runs (Ctrl-C): it runs again later. Return the indices."""
        ...

    def rows(self) -> list[TrialRow]:
        """Return what is done, by index."""
        ...
