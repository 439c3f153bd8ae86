"""A training in a thread of its own that takes turns with whoever asks for its reports."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from voxray.train.control import Control, Stopped
from voxray.train.fit_context import Report
from voxray.tune.job import REPORTS

EVERY_S = 1.0
Numbers = dict[str, float]
Body = Callable[[Report, Control], None]


class Lockstep:
    """Runs `body(report, control)`; between a report and the next call of `next` the body waits in `report`.

    So nothing is trained while a scheduler decides, and a stopped training ends right there. Where nobody
    decides, the body does not wait (`waits`), and what it reports within EVERY_S is told together: each
    report that is told costs the driver some 10 ms.
    """

    def __init__(self, body: Body, waits: bool = True) -> None:
        """Begin nothing before the first `next`."""
        self._waits = waits
        self._untold: list[Numbers] = []
        self._told = time.monotonic()
        self._reports = queue.SimpleQueue[dict[str, Any] | None]()  # None: the body has ended
        self._turns = threading.Semaphore(0)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True, name="training")

    def untold(self) -> list[Numbers]:
        """Return the reports that were not told yet; for when the body has ended."""
        return self._untold

    def next(self) -> dict[str, Any] | None:
        """Let the body go on to its next report and return that, or None when it has ended. Without `waits`
        it has all since the last one under REPORTS.

        Raises what the body raised; Stopped when it ended since it was asked to.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turns.release()
        report = self._reports.get()
        if report is None and self._error is not None:
            raise self._error
        return report

    def ask_to_stop(self) -> None:
        """Let the body end at its next update, where it is not waiting in `report`."""
        self._stop.set()

    def stop(self) -> None:
        """End the body at the report in which it waits, or at its next update; return when it has ended."""
        self._stop.set()
        self._turns.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self, body: Body) -> None:
        try:
            body(self._give, Control(should_stop=self._stop.is_set))
        except Stopped:
            self._error = Stopped()  # without the frames that it came through, which hold the model
        except BaseException as error:
            self._error = error
        finally:
            self._reports.put(None)

    def _give(self, report: Numbers) -> None:
        if self._stop.is_set():
            raise Stopped
        if not self._waits:
            self._untold.append(report)
            if time.monotonic() - self._told >= EVERY_S:
                self._told = time.monotonic()
                untold, self._untold = self._untold, []
                self._reports.put({**report, REPORTS: untold})
            return
        self._reports.put(report)
        self._turns.acquire()
        if self._stop.is_set():
            raise Stopped
