"""A thread beside the loop: it sees that the run is to stop or its node to go, and that the loop hangs."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from voxray.train.control import Control

POLL_S = 0.5


class Watch:
    """Polls from outside the loop; `control` is what the loop asks. Use as a context manager."""

    def __init__(
        self,
        stop_file: Path,
        is_leaving: Callable[[], bool],
        hang_timeout_s: float,
        on_hang: Callable[[Path], None],
        trace_file: Path,
    ) -> None:
        """`is_leaving` says whether this node is about to go; `on_hang` is told where the stacks were
        written, before the process ends.
        """
        self._stop_file, self._is_leaving = stop_file, is_leaving
        self._hang_timeout_s, self._on_hang, self._trace_file = hang_timeout_s, on_hang, trace_file
        self._last_beat = time.monotonic()
        self._rests = False
        self._stop, self._leaving, self._saved = False, False, False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True, name="voxray-watch")

    @property
    def control(self) -> Control:
        """What the loop asks and tells."""
        return Control(lambda: self._stop, self._should_save, self._beat)

    def __enter__(self) -> "Watch":
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Look no more."""
        self._done.set()
        self._thread.join()

    @contextlib.contextmanager
    def resting(self) -> Generator[None]:
        """Miss no sign of life while the body runs: the loop waits for somebody else."""
        self._rests = True
        try:
            yield
        finally:
            self._beat()
            self._rests = False

    def _beat(self) -> None:
        self._last_beat = time.monotonic()

    def _should_save(self) -> bool:
        """Whether to save once before the node goes."""
        if not self._leaving or self._saved:
            return False
        self._saved = True
        return True

    def _poll(self) -> None:
        while not self._done.wait(POLL_S):
            self._stop = self._stop or self._stop_file.exists()
            self._leaving = self._leaving or self._is_leaving()
            if not self._rests and time.monotonic() - self._last_beat > self._hang_timeout_s:
                with self._trace_file.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                self._on_hang(self._trace_file)
                os._exit(1)  # a thread that hangs cannot be ended; Ray begins the attempt again
