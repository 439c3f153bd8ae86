"""Feeds a run's log to its trackers, each in a daemon thread of its own that reads the log at its own pace.

The log is the queue: a tracker that is slow or down holds nothing up and costs no memory. What fails is tried
again with growing pauses; what is left at the end is sent when the same command runs again.
"""

import threading
import time
from collections.abc import Callable, Sequence

from voxray.config.secrets import masked
from voxray.train.log_tail import LogTail, Record
from voxray.train.run_folder import RunFolder
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
        self._lanes = [Lane(feed.name) for feed in self._feeds]
        for lane, feed in zip(self._lanes, self._feeds, strict=True):
            lane.add(feed)

    def finish(self, status: str, patience_s: float = 0.0) -> None:
        """Let all end at the same time, each within its own patience or a longer one; `tell` who did not."""
        for feed in self._feeds:
            feed.stop(status, patience_s)
        for lane in self._lanes:
            lane.close()
        for feed in self._feeds:
            feed.wait()


class Lane:
    """A daemon thread that gives its feeds their turns, one after the other, until each has ended."""

    def __init__(self, name: str) -> None:
        """Start with no feed."""
        self._feeds: list[Feed] = []
        self._is_closed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def add(self, feed: "Feed") -> None:
        """Follow a run from now on."""
        self._feeds.append(feed)
        self._wake.set()

    def wake(self) -> None:
        """Look at all feeds now: one was told to stop."""
        self._wake.set()

    def close(self) -> None:
        """End the thread when the last feed has ended; none is added any more."""
        self._is_closed = True
        self._wake.set()

    def _run(self) -> None:
        while self._feeds or not self._is_closed:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            for feed in tuple(self._feeds):
                if feed.is_due:
                    feed.turn()
                if feed.is_done:
                    self._feeds.remove(feed)

    def _pause_s(self) -> float | None:
        """Return how long nothing is due; None: until woken."""
        feeds = tuple(self._feeds)
        if any(feed.is_due for feed in feeds):
            return 0.0
        return max(0.0, min(feed.due_at for feed in feeds) - time.monotonic()) if feeds else None


class Feed:
    """One tracker and its place in the log of one run."""

    def __init__(self, tracker: Tracker, info: RunInfo, tell: Tell, of_many: bool = False) -> None:
        """Take up the log where an earlier driver left it.

        `of_many`: one of many runs. The tracker is started when there is a log, not before, and nothing is
        told of how far a run that has ended came: who follows them all does that.
        """
        self._tracker, self._info, self._is_of_many = tracker, info, of_many
        self._tell: Tell | None = tell
        self._state = TrackerState(info.run, tracker.key)
        self._tail = LogTail(info.run.log_file, self._state.position)
        self._started = False
        self._failures = 0
        self._left_out = 0
        self._status = ""
        self._patience_s = tracker.patience_s
        self._ends_at = float("inf")
        self._done = threading.Event()
        self.due_at = time.monotonic()
        self.is_whole = False  # all was sent, and the tracker's run was ended

    @staticmethod
    def is_log_ahead(run: RunFolder, key: str) -> bool:
        """Whether a run's log has records that the tracker `key` has not."""
        return next(LogTail(run.log_file, TrackerState(run, key).position).new(), None) is not None

    @property
    def name(self) -> str:
        """The tracker's name."""
        return self._tracker.name

    @property
    def is_behind(self) -> bool:
        """Whether the log has records that the tracker has not."""
        return next(self._tail.new(), None) is not None

    @property
    def is_due(self) -> bool:
        """Whether it is time for a turn; at once where the run is to end."""
        return bool(self._status) or time.monotonic() >= self.due_at

    @property
    def is_done(self) -> bool:
        """Whether it has had its last turn."""
        return self._done.is_set()

    def stop(self, status: str, patience_s: float) -> None:
        """Ask for what is left to be sent and the run to be ended, in the next turn."""
        self._status = status
        self._patience_s = max(patience_s, self._tracker.patience_s)
        self._ends_at = time.monotonic() + self._patience_s

    def wait(self) -> None:
        """Wait until the tracker is done or its patience is over; then it gets no further record."""
        if not self._done.wait(max(0.0, self._ends_at - time.monotonic())):
            self._say(f"{self._tracker.name}: not done within {self._patience_s:g} s{self._left()}")
            self._tell = None

    def turn(self) -> None:
        """Give the tracker what is new; where the run is to end, end it."""
        last = bool(self._status)
        is_off = time.monotonic() >= self._ends_at
        if not is_off:
            try:
                if self._started or not self._is_of_many or self._info.run.log_file.exists():
                    self._round()
                if last and self._started:
                    self._tracker.finish(self._status)
                self.is_whole = last and not self.is_behind
            except ImportError as error:
                self._say(f"{self._tracker.name} is off: {error}")
                is_off = True
            except (Exception, SystemExit) as error:
                self._failed(error, last)
            else:
                self._recovered()
        if last or is_off:
            self._end()
        else:
            self.due_at = time.monotonic() + self._pause_s()

    def _end(self) -> None:
        if self._left_out and not self._is_of_many:
            self._say(
                f"{self._tracker.name} was slow: {self._left_out} records of single steps were left out; "
                f"{self._info.run.log_file} has them"
            )
        self._done.set()

    def _say(self, text: str) -> None:
        """Tell the user, as long as the run is waited for; an address in `text` may hold a password."""
        if self._tell is not None and text:
            self._tell(masked("", text))

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
        if last and not self._is_of_many:
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
