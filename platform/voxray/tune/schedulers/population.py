"""What Ray Tune sees of a population: members that wait for each other, and go on from one another's state.

Tune starts what is PENDING by itself, so members are added as PAUSED and `choose_trial_to_run` alone starts
them, at most `at_a_time`. A member at a generation's end gives its place to one that has still to get there;
where there is none it waits inside its actor, which would be lost: Tune keeps one idle actor at most.
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportPrivateUsage=false

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from voxray.tune.job import Job
from voxray.tune.schedulers.pbt import Exploit, Population
from voxray.tune.schedulers.policy import Result, reaches
from voxray.tune.schedulers.scheduler import Clock, index_of, saved_evaluations

STUCK_S = 20.0  # an actor starts in 3 s


@dataclass(frozen=True)
class Place:
    """Where a member stands at its last report."""

    epochs: float
    step: int


class Breeder(Protocol):
    """Carries out an exploitation."""

    def __call__(self, exploit: Exploit, member: Job, donor: Job, at: Place) -> Job | None:
        """Put the donor's state into the member's run and return its new job; None when that cannot be done,
        and the member goes on as it is.
        """
        ...


class PopulationScheduler(TrialScheduler):
    """Runs a `Population` on Tune."""

    def __init__(
        self,
        population: Population,
        clock: Clock,
        breed: Breeder,
        done: Callable[[], set[int]],
        max_epochs: float,
        at_a_time: int | None,
    ) -> None:
        """`done` returns the members that the ledger knows to have ended; a report at `max_epochs` is a
        member's last; `at_a_time` None: as many as fit.
        """
        super().__init__()
        self.population, self.clock, self.at_a_time = population, clock, at_a_time
        self._breed, self._done, self._max_epochs = breed, done, max_epochs
        self._places: dict[int, Place] = {}
        self._trials: dict[int, Trial] = {}
        self._stuck_since: float | None = None
        self._held: set[int] = set()  # they wait inside their actors
        self._to_restart: list[int] = []  # held ones whose state or values are others now

    # --- members come and go
    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take a new member, which a search that was cut short may have begun, or one whose actor died: Tune
        starts that again by itself.
        """
        index = index_of(trial)
        self.population.join(index)
        self._held.discard(index)
        if index not in self._trials:
            trial.set_status(Trial.PAUSED)  # Tune has not counted it yet
            self._go_on(trial)
        self._trials[index] = trial

    def _go_on(self, trial: Trial) -> None:
        """Let a member stand where its newest checkpoint does."""
        for record in saved_evaluations(trial):
            if told := self.clock.read(index_of(trial), record):
                self._take(told, record)
        self.population.was_let_go(index_of(trial))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Wait for it no more; `on_trial_add` follows where it is begun again."""
        self._gone(index_of(trial))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Wait for it no more."""
        self._gone(index_of(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Wait for it no more."""
        self._gone(index_of(trial))

    def _gone(self, index: int) -> None:
        self.population.leave(index)
        self._held.discard(index)
        self._to_restart = [other for other in self._to_restart if other != index]

    # --- members run
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let a member go on, unless it has got to the end of a generation."""
        index = index_of(trial)
        told = self.clock.read(index, result)
        if told is not None:
            self._take(told, result)
        if told is None or not self.population.waits(index):
            return TrialScheduler.CONTINUE
        wanted = self._is_full() and (self._runnable() or self._missing())
        if wanted and not self.population.is_due():
            tune_controller.pause_trial(trial, should_checkpoint=False)
        else:
            self._held.add(index)  # also the last of a generation, until `choose_trial_to_run` ends it
        return TrialScheduler.NOOP

    def _take(self, told: Result, report: dict[str, Any]) -> None:
        place = Place(float(report.get("epochs", 0.0)), int(report.get("step", 0)))
        self.population.take(told)
        self._places[told.index] = place
        if reaches(place.epochs, self._max_epochs):
            self.population.leave(told.index)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """End a generation that is due; start the member that is farthest behind, where there is a place."""
        self._forget_who_never_came()
        if self.population.is_due():
            self._end_generation()
        self._release(tune_controller)
        if self._to_restart:
            trial = self._trials[self._to_restart.pop(0)]
            pause(tune_controller, trial)
            return trial  # one at a time: its own actor, idle now, takes it again
        self._make_room(tune_controller)
        runnable = self._runnable()
        return runnable[0] if runnable and not self._is_full() else None

    def _runnable(self) -> list[Trial]:
        """Return the members that are PAUSED and need not wait, who is farthest behind first."""
        found = [
            (self.population.times.get(index, 0.0), index)
            for index, trial in self._trials.items()
            if trial.status == Trial.PAUSED and not self.population.waits(index)
        ]
        return [self._trials[index] for _, index in sorted(found)]

    def _is_full(self) -> bool:
        active = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._trials.values())
        return self.at_a_time is not None and active >= self.at_a_time

    def _make_room(self, tune_controller: Any) -> None:
        """Let one that waits inside its actor give its place away, when those that are to start have waited
        long for theirs: fewer may fit than was thought.
        """
        active = [index for index, t in self._trials.items() if t.status in (Trial.PENDING, Trial.RUNNING)]
        starting = [index for index in active if self._trials[index].status == Trial.PENDING]
        if not (self._held and starting) or len(self._held) + len(starting) < len(active):
            self._stuck_since = None
            return
        self._stuck_since = self._stuck_since or time.monotonic()
        if time.monotonic() - self._stuck_since > STUCK_S:
            self._stuck_since = None
            pause(tune_controller, self._trials[self._held.pop()])

    def _forget_who_never_came(self) -> None:
        """Leave out members that the searcher had to skip, since the experiment refuses their values."""
        if self._missing():
            for index in self._done() - self._trials.keys():
                self.population.leave(index)

    def _missing(self) -> set[int]:
        """Return the members that Tune has still to add."""
        return self.population.alive - self._trials.keys()

    # --- a generation ends
    def _end_generation(self) -> None:
        for exploit in self.population.select():
            member, donor = self._trials[exploit.index], self._trials[exploit.donor]
            place = self._places[exploit.donor]
            job = self._breed(exploit, member.config["job"], donor.config["job"], place)
            if job is None:
                continue
            self._places[exploit.index] = place
            member.set_config({**member.config, "job": job})
            if exploit.index in self._held:
                self._held.discard(exploit.index)
                self._to_restart.append(exploit.index)

    def _release(self, tune_controller: Any) -> None:
        """Let those that waited inside their actors go on there; where the actor died, in another."""
        for index in sorted(self._held):
            if self.population.waits(index):
                continue
            self._held.discard(index)
            trial = self._trials[index]
            if trial.temporary_state.ray_actor is None:
                pause(tune_controller, trial)
            else:
                tune_controller._schedule_trial_train(trial)

    def debug_string(self) -> str:
        """Say how far the population is."""
        return f"generation {self.population.released}, {len(self.population.alive)} members"

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger remembers the curves and who took over what."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""


def pause(tune_controller: Any, trial: Trial) -> None:
    """End a trial's training where it reported last; its actor, where it lives, is kept for the next."""
    if trial.temporary_state.ray_actor is None:
        tune_controller._set_trial_status(trial, Trial.PAUSED)
    else:
        tune_controller.pause_trial(trial, should_checkpoint=False)
