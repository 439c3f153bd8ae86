"""Feeds a run's log to its trackers, each in a daemon thread of its own that reads the log at its own pace.

The log is the queue: a tracker that is slow or down holds nothing up and costs no memory. What fails is tried
again with growing pauses; what is left at the end is sent when the same command runs again.
"""

import threading
import time
from collections.abc import Callable, Sequence

from voxray.config.secrets import masked
from voxray.train.log_tail import LogTail, Record
from voxray.train.trackers.tracker import RunInfo, Tracker, TrackerState

POLL_S = 0.5
LONGEST_PAUSE_S = 60.0
MOST_STEP_RECORDS = 2000  # of one round; a tracker that is further behind loses the oldest

Tell = Callable[[str], None]


class FanOut:
    """The trackers of one run."""

    def __init__(
        self, trackers: Sequence[Tracker], info: RunInfo, tell: Tell, only_behind: bool = False
    ) -> None:
        """Start a thread per tracker; with `only_behind`, of those that have not all of the log."""
        feeds = [Feed(tracker, info, tell) for tracker in trackers]
        self._feeds = [feed for feed in feeds if feed.is_behind or not only_behind]
        for feed in self._feeds:
            feed.thread.start()

    def finish(self, status: str, patience_s: float = 0.0) -> None:
        """Let all end at the same time, each within its own patience or a longer one; `tell` who did not."""
        for feed in self._feeds:
            feed.stop(status, patience_s)
        for feed in self._feeds:
            feed.wait()


class Feed:
    """One tracker and its place in the log."""

    def __init__(self, tracker: Tracker, info: RunInfo, tell: Tell) -> None:
        """Take up the log where an earlier driver left it."""
        self._tracker, self._info = tracker, info
        self._tell: Tell | None = tell
        self._state = TrackerState(info.run, tracker.key)
        self._tail = LogTail(info.run.log_file, self._state.position)
        self._started = False
        self._failures = 0
        self._left_out = 0
        self._status = "failed"
        self._patience_s = tracker.patience_s
        self._ends_at = float("inf")
        self._stop = threading.Event()
        self._done = threading.Event()
        self.thread = threading.Thread(target=self._follow, name=f"tracker {tracker.name}", daemon=True)

    @property
    def is_behind(self) -> bool:
        """Whether the log has records that the tracker has not."""
        return next(self._tail.new(), None) is not None

    def stop(self, status: str, patience_s: float) -> None:
        """Ask for what is left to be sent and the run to be ended."""
        self._status = status
        self._patience_s = max(patience_s, self._tracker.patience_s)
        self._ends_at = time.monotonic() + self._patience_s
        self._stop.set()

    def wait(self) -> None:
        """Wait until the tracker is done or its patience is over; then it gets no further record."""
        if not self._done.wait(max(0.0, self._ends_at - time.monotonic())):
            self._say(f"{self._tracker.name}: not done within {self._patience_s:g} s{self._left()}")
            self._tell = None

    def _say(self, text: str) -> None:
        """Tell the user, as long as the run is waited for; an address in `text` may hold a password."""
        if self._tell is not None:
            self._tell(masked("", text))

    def _follow(self) -> None:
        last = False
        while not last and time.monotonic() < self._ends_at:
            last = self._stop.is_set()
            try:
                self._round()
                if last:
                    self._tracker.finish(self._status)
            except ImportError as error:
                self._say(f"{self._tracker.name} is off: {error}")
                break
            except (Exception, SystemExit) as error:
                self._failed(error, last)
            else:
                self._recovered()
            if not last:
                self._stop.wait(self._pause_s())
        if self._left_out:
            self._say(
                f"{self._tracker.name} was slow: {self._left_out} records of single steps were left out; "
                f"{self._info.run.log_file} has them"
            )
        self._done.set()

    def _round(self) -> None:
        """Start the tracker where it is not, and give it what is new."""
        if not self._started:
            where = self._tracker.start(self._info, self._state)
            self._started = True
            self._tail.position = self._state.position
            self._state.save()
            self._say(where)
        for end, record, too_many in self._new():
            if time.monotonic() > self._ends_at:
                return
            if too_many:
                self._left_out += 1
            else:
                self._tracker.record(record)
            self._tail.position = end
        self._tracker.flush()
        if self._state.position != self._tail.position:
            self._state.position = self._tail.position
            self._state.save()

    def _new(self) -> list[tuple[int, Record, bool]]:
        """Return (end, record, whether it is left out): the oldest step records where there are too many."""
        new = list(self._tail.new())
        num_steps = sum(record["kind"] == "step" for _, record in new)
        marked: list[tuple[int, Record, bool]] = []
        for end, record in new:
            too_many = record["kind"] == "step" and num_steps > MOST_STEP_RECORDS
            num_steps -= too_many
            marked.append((end, record, too_many))
        return marked

    def _failed(self, error: BaseException, last: bool) -> None:
        self._failures += 1
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if last:
            self._say(f"{self._tracker.name} failed at the end ({reason}){self._left()}")
        elif self._failures == 1:
            self._say(f"{self._tracker.name} is off for now ({reason}); training goes on, it is tried again")

    def _recovered(self) -> None:
        if self._failures:
            self._failures = 0
            self._say(f"{self._tracker.name} is back")

    def _pause_s(self) -> float:
        return min(LONGEST_PAUSE_S, POLL_S * 2**self._failures)

    def _left(self) -> str:
        num_left = sum(1 for _ in LogTail(self._info.run.log_file, self._tail.position).new())
        return f"; {num_left} records were not sent; the same command sends them" if num_left else ""
