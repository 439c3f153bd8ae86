"""Why a training ended before its end, as text: an exception's frames would keep the model in memory."""

import traceback
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Failure:
    """`reason`: the exception and its message; `trace`: for the run's folder."""

    reason: str
    trace: str
    wants_retry: bool = False  # for want of memory: the next attempt takes less at a time
    is_consequence: bool = False  # of another worker's end

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Return what `error` says."""
        from voxray.train.faults import OutOfMemoryError, is_lost_peer

        return cls(
            f"{type(error).__name__}: {error}",
            "".join(traceback.format_exception(error)),
            isinstance(error, OutOfMemoryError),
            is_lost_peer(error),
        )


class TrainingFailedError(Exception):
    """A trial's training raised; its process lives on."""

    def __init__(self, failure: Failure) -> None:
        """Take what was raised."""
        super().__init__(failure.reason)
        self.failure = failure


class WorkerDiedError(Exception):
    """A process that trained is gone (out of memory, a lost node); the trial goes on from its checkpoint."""
