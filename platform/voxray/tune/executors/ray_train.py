"""The train executor: a Ray Train run per trial, for workers whose number may change, or on several nodes.

The run belongs to an actor of its own, the launcher: Ray ends all that an actor has started when it goes, so
a run that does not end by itself can be ended. What may stay behind is its placement group (`groups.py`).
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from voxray.train.control import Control, Stopped
from voxray.train.fit_context import Report
from voxray.train.log_tail import LogTail, Record
from voxray.train.run_folder import RunFolder
from voxray.tune.executors.failure import Failure, TrainingFailedError, WorkerDiedError
from voxray.tune.executors.groups import give_back
from voxray.tune.executors.lockstep import Numbers
from voxray.tune.executors.strategy import POLL_S, STOP_WITHIN_S
from voxray.tune.job import Run

NO_NUMBERS = ("kind", "stage", "time_s")


class Launcher:
    """Owns a Ray Train run: its controller, and through it the workers."""

    def train(self, run: Run) -> Failure | None:
        """Train a run in workers of Ray Train; return what ended it, None at its end."""
        from voxray.train.launch import train_workers

        try:
            train_workers(run.config, RunFolder(run.path))
        except Exception as error:
            return Failure.of(error)
        return None


class RayTrain:
    """Trains by Ray Train, from the trial's actor. The workers do not wait while a scheduler decides."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._launcher: Any = None

    def train(self, run: Run, report: Report, control: Control) -> None:
        """Train; report the evaluations as they come into the run's log."""
        folder = RunFolder(run.path)
        tail = LogTail(folder.log_file)
        if folder.log_file.exists():
            tail.position = folder.log_file.stat().st_size
        if self._launcher is None:
            self._launcher = ray.remote(Launcher).options(num_cpus=0).remote()
        training = self._launcher.train.remote(run)
        try:
            has_ended = False
            while not has_ended:
                has_ended = bool(ray.wait([training], timeout=POLL_S)[0])
                for numbers in evaluations(tail):
                    report(numbers)
                if control.should_stop():
                    raise Stopped
            failure: Failure | None = ray.get(training)  # pyright: ignore[reportAssignmentType]
        except Stopped:
            self._stop(folder, training)
            raise
        except RayActorError as error:
            self.close()
            raise WorkerDiedError(str(error)) from None
        if folder.stop_file.exists() and not folder.is_finished():
            raise Stopped
        if failure:
            raise TrainingFailedError(failure)

    def close(self) -> None:
        """End the launcher, and with it what it has started."""
        if self._launcher is not None:
            ray.kill(self._launcher)
            self._launcher = None

    def _stop(self, folder: RunFolder, training: Any) -> None:
        """Ask the workers to save and end; end them where that takes too long."""
        folder.stop_file.touch()
        try:
            ray.get(training, timeout=STOP_WITHIN_S)
        except (GetTimeoutError, RayActorError):
            self.close()
            give_back()
        folder.stop_file.unlink(missing_ok=True)


def evaluations(tail: LogTail) -> Iterator[Numbers]:
    """Yield the numbers of the evaluations that were logged since the last call, as the loop reports them."""
    for position, record in tail.new():
        tail.position = position
        if record["kind"] in ("epoch", "validation") and any(name.startswith("val/") for name in record):
            yield _as_reported(record)


def _as_reported(record: Record) -> Numbers:
    numbers: Numbers = {
        name: value
        for name, value in record.items()
        if name not in NO_NUMBERS and isinstance(value, int | float)
    }
    if record["kind"] == "epoch":
        numbers["epoch"] += 1  # the log counts from 0, a report says how many are done
    return numbers
