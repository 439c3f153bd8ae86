"""`StudyLedger`: an Optuna study on a journal file, the only record of which trials of a search are done.

A logical trial has an index, 0 … trials − 1, kept as the user attribute `index`. One that was cut short runs
again under its index, as a new Optuna trial with the same parameters. An index is done when one of its trials
is COMPLETE or PRUNED, or is FAIL with a `reason`: it crashed, and the same parameters would crash again. FAIL
without a reason was cut short: by Ctrl-C, or left RUNNING by a driver that was killed.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxray.config.errors import RunError
from voxray.tune.config import Distribution, ObjectiveConfig, SamplerConfig
from voxray.tune.space import experiment_values, optuna_distributions

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"


@dataclass(frozen=True)
class Suggestion:
    """The values of one logical trial."""

    index: int
    values: dict[str, Any]  # dotted path of the experiment → value


@dataclass(frozen=True)
class TrialRow:
    """One logical trial that is done. `value` is None where it failed; then `reason` says why."""

    index: int
    state: str  # complete | pruned | fail
    value: float | None
    step: int | None  # of the value
    seconds: float
    values: dict[str, Any]
    reason: str


class StudyLedger:
    """A study's folder, open for asking and telling, in one process: the caller holds the folder's lock."""

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, Distribution],
        objective: ObjectiveConfig,
        sampler: SamplerConfig,
        num_trials: int,
    ) -> None:
        """Open the journal in `folder`, or begin it; trials that a killed driver left RUNNING become FAIL."""
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        mend_journal(folder / JOURNAL)
        self.space, self.objective, self.sampler, self.num_trials = space, objective, sampler, num_trials
        self.distributions = optuna_distributions(space)
        self.study = optuna.create_study(
            study_name=folder.name,
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            direction="maximize" if objective.mode == "max" else "minimize",
            load_if_exists=True,
        )
        self.running: dict[int, Trial] = {}
        self._cut_short: dict[int, FrozenTrial] = {}
        for trial in self._trials("RUNNING", "WAITING"):
            self._tell_fail(trial.number)
        for trial in self._trials("FAIL"):
            if "index" in trial.user_attrs:
                self._cut_short[trial.user_attrs["index"]] = trial

    def remaining(self) -> list[int]:
        """Return the indices that are neither done nor running, in order."""
        taken = {row.index for row in self.rows()} | set(self.running)
        return [index for index in range(self.num_trials) if index not in taken]

    def ask(self, index: int) -> Suggestion:
        """Begin trial `index`: its own values again if it was cut short, else what the sampler suggests.

        The sampler is new and seeded by hash(seed, index): what it suggests depends on finished trials, so at
        one trial at a time a continued study equals one that was never interrupted.
        """
        before = self._cut_short.get(index)
        self.study.sampler = _sampler(self.sampler, index, before.params if before else {})
        trial = self.study.ask(fixed_distributions=self.distributions)
        trial.set_user_attr("index", index)  # last: a trial that has an index has all its values
        self.running[index] = trial
        for step, value in (before.intermediate_values if before else {}).items():
            trial.report(value, step)
        return Suggestion(index, experiment_values(self.space, trial.params))

    def report(self, index: int, step: int, value: float) -> None:
        """Record the metric at a step, unless it is not finite, or known from before the trial was cut."""
        trial = self.running[index]
        if math.isfinite(value) and step not in self._frozen(trial).intermediate_values:
            trial.report(value, step)

    def finish(self, index: int) -> TrialRow:
        """Tell COMPLETE with the best value over all steps, or FAIL when none of them is a finite number."""
        best = _best_step(self._frozen(self.running[index]).intermediate_values, self.objective.mode)
        if best is None:
            return self.crash(index, f"{self.objective.metric} was never a finite number")
        trial = self.running.pop(index)
        trial.set_user_attr("best_step", best[0])
        self.study.tell(trial, best[1])
        return self._row(self._frozen(trial))

    def crash(self, index: int, reason: str) -> TrialRow:
        """Tell FAIL, for good, with the reason."""
        trial = self.running.pop(index)
        trial.set_user_attr("reason", reason)
        self._tell_fail(trial.number)
        return self._row(self._frozen(trial))

    def stop(self, index: int) -> TrialRow:
        """Tell PRUNED, with the last value: a scheduler stopped the trial."""
        from optuna.trial import TrialState

        trial = self.running.pop(index)
        self.study.tell(trial, state=TrialState.PRUNED)
        return self._row(self._frozen(trial))

    def cut_short(self) -> list[int]:
        """Tell FAIL, to be run again, for what still runs (Ctrl-C). Return the indices."""
        indices = sorted(self.running)
        for index in indices:
            trial = self.running.pop(index)
            self._tell_fail(trial.number)
            self._cut_short[index] = self._frozen(trial)
        return indices

    def rows(self) -> list[TrialRow]:
        """Return the logical trials that are done, by index."""
        done = [
            *self._trials("COMPLETE", "PRUNED"),
            *(t for t in self._trials("FAIL") if "reason" in t.user_attrs),
        ]
        rows = [self._row(trial) for trial in done]
        return sorted(rows, key=lambda row: row.index)

    def best(self) -> TrialRow | None:
        """Return the complete trial with the best value, the first of equals; None when none is complete."""
        complete = [row for row in self.rows() if row.state == "complete"]
        sign = -1 if self.objective.mode == "max" else 1
        return min(complete, key=lambda row: sign * (row.value or 0.0), default=None)

    def _trials(self, *states: str) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states))

    def _frozen(self, trial: "Trial") -> "FrozenTrial":
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _tell_fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL)

    def _row(self, trial: "FrozenTrial") -> TrialRow:
        return TrialRow(
            index=trial.user_attrs["index"],
            state=trial.state.name.lower(),
            value=trial.value,
            step=trial.user_attrs.get("best_step"),
            seconds=trial.duration.total_seconds() if trial.duration else 0.0,
            values=experiment_values(self.space, trial.params),
            reason=trial.user_attrs.get("reason", ""),
        )


def _sampler(config: SamplerConfig, index: int, fixed: Mapping[str, Any]) -> "BaseSampler":
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

    digest = hashlib.blake2b(f"{config.seed}/{index}".encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little")  # numpy's RandomState takes 32 bits
    if config.name == "random":
        sampler: BaseSampler = RandomSampler(seed=seed)
    else:
        sampler = TPESampler(seed=seed, n_startup_trials=config.startup_trials)
    if not fixed:
        return sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PartialFixedSampler(dict(fixed), sampler)


def _best_step(values: Mapping[int, float], mode: str) -> tuple[int, float] | None:
    sign = -1 if mode == "max" else 1
    return min(sorted(values.items()), key=lambda item: sign * item[1], default=None)


def mend_journal(journal: Path) -> None:
    """Undo what a killed driver may have left; only the holder of the study's lock may call this.

    A last line without an end would swallow the next one, and Optuna would wait 30 s for a lock left behind.
    Raises RunError when the journal cannot be written.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    try:
        with journal.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
    except OSError as error:
        raise RunError(f"{journal} cannot be written: {error.strerror}") from error
