"""`StudySearcher`: Ray Tune asks it for trials and tells it how they went; the study's ledger answers."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from voxray.config.errors import InputError
from voxray.train.run_folder import RunFolder
from voxray.tune.inline import CRASHED, FINISHED, OUTCOME, REASON, Job
from voxray.tune.study import StudyLedger, Suggestion, TrialRow


class StudySearcher(Searcher):
    """Keeps nothing that the ledger does not keep, so Tune's own snapshots of a searcher are never needed."""

    def __init__(
        self, ledger: StudyLedger, job: Callable[[Suggestion], Job], done: Callable[[TrialRow], None]
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
        """Record the metric of an epoch."""
        self._record(self._running[trial_id].index, result)

    def _record(self, index: int, epoch: dict[str, Any]) -> None:
        value = epoch.get(self._ledger.objective.metric)
        if value is not None:
            self._ledger.report(index, int(epoch["step"]), float(value))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the ledger how the trial ended: as its last report says, else it was stopped, or it died."""
        job = self._running.pop(trial_id)
        outcome = (result or {}).get(OUTCOME)
        if error:
            row = self._ledger.crash(job.index, "its process died, twice (out of memory?)")
        elif outcome == FINISHED:
            # An epoch saved but not heard of before a kill is not trained again; the run's log has it.
            for record in RunFolder(job.run_dir).records():
                if record["kind"] == "epoch":
                    self._record(job.index, record)
            row = self._ledger.finish(job.index)
        elif outcome == CRASHED:
            row = self._ledger.crash(job.index, (result or {})[REASON])
        else:
            row = self._ledger.stop(job.index)
        self._done(row)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the journal is the study's only record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, for the same reason."""
