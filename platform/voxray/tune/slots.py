"""How many trials run: the limit that Tune's own limiter does not keep, since it counts paused trials too."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

HOLDING = (Trial.PENDING, Trial.RUNNING)
LIVING = (*HOLDING, Trial.PAUSED)
LOOK_EVERY_S = 1.0


class Slots(Callback):
    """Counts the trials that hold resources, or are about to; looks after what dead actors left behind."""

    def __init__(self, at_a_time: int, give_back: Callable[[], object] | None) -> None:
        """Take the limit, and what gives resources back that nobody else does."""
        self._at_a_time, self._give_back = at_a_time, give_back
        self._trials: Sequence[Any] = ()  # Tune's own list, which it goes on changing
        self._looked = time.monotonic()

    @property
    def is_free(self) -> bool:
        """Whether another trial may begin."""
        return sum(trial.status in HOLDING for trial in self._trials) < self._at_a_time

    @property
    def is_any_alive(self) -> bool:
        """Whether a trial has not ended."""
        return any(trial.status in LIVING for trial in self._trials)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Keep the list of trials."""
        self._trials = trials
        if self._give_back and time.monotonic() - self._looked > LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._give_back()


class LimitedSearcher(Searcher):
    """Passes everything on to `searcher`, and asks it for a trial only when a slot is free.

    That no more come is told when the last trial has ended: from then on Tune keeps no actor for another
    trial, not for a paused one either, and each time one goes on would cost a new actor.
    """

    def __init__(self, searcher: Searcher, slots: Slots) -> None:
        """Take what suggests trials."""
        super().__init__()
        self._searcher, self._slots = searcher, slots
        self._has_finished = False

    # Ray's annotation leaves out FINISHED, its docstring does not.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Suggest nothing yet where no slot is free."""
        if not self._has_finished:
            if not self._slots.is_free:
                return None
            suggestion: Any = self._searcher.suggest(trial_id)
            if suggestion != Searcher.FINISHED:
                return suggestion
            self._has_finished = True
        return None if self._slots.is_any_alive else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a result on."""
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass a trial's end on."""
        self._searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: Tune's snapshots are not used."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""
