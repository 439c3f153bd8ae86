"""`LedgerSearcher`: Ray Tune asks it for trials and tells it how they went; the ledger answers."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from voxray.config.errors import InputError
from voxray.tune.job import CRASHED, FINISHED, OUTCOME, REASON, REPORTS, Job
from voxray.tune.ledger import Ledger, Suggestion, TrialRow


class LedgerSearcher(Searcher):
    """Keeps nothing that the ledger does not keep, so Tune's own snapshots of a searcher are never needed."""

    def __init__(
        self, ledger: Ledger, job: Callable[[Suggestion], Job], done: Callable[[TrialRow], None]
    ) -> None:
        """Take the ledger, what makes a trial's job (or raises InputError), and what hears of each end."""
        super().__init__()
        self._ledger, self._job, self._done = ledger, job, done
        self._running: dict[str, Job] = {}  # by Tune's id of the trial

    # Ray's annotation leaves out FINISHED, its docstring does not.
    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin the next trial that is not done; one whose values the experiment refuses fails at once."""
        while remaining := self._ledger.remaining():
            suggestion = self._ledger.ask(remaining[0])
            try:
                job = self._job(suggestion)
            except InputError as error:
                self._done(self._ledger.crash(suggestion.index, str(error)))
                continue
            self._running[trial_id] = job
            return {"job": job}
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record an evaluation."""
        self._report(self._running[trial_id].index, result)

    def _report(self, index: int, result: dict[str, Any]) -> None:
        for record in result.get(REPORTS, [result]):
            self._ledger.report(index, record)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the ledger how the trial ended: as its last report says, else it was stopped, or it died."""
        job = self._running.pop(trial_id)
        last = result or {}
        # What a scheduler stops a trial at, and what was reported since the last time, is told here alone.
        self._report(job.index, last)
        if error:
            row = self._ledger.crash(job.index, "its process died, twice (out of memory?)")
        elif last.get(OUTCOME) == FINISHED:
            row = self._ledger.finish(job.index, job)
        elif last.get(OUTCOME) == CRASHED:
            row = self._ledger.crash(job.index, last[REASON])
        else:
            row = self._ledger.stop(job.index)
        self._done(row)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the only record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""
