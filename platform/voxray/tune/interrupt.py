"""Ctrl-C during a search: noted when it comes, acted on between two steps of Tune's loop."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray
from ray.tune import Callback


class Interrupt(Callback):
    """A Tune callback that kills the running trials and leaves the loop after the first SIGINT.

    Between two steps nothing is half done. The second SIGINT is Python's own again.
    """

    def __init__(self) -> None:
        self.noticed = False

    @contextmanager
    def listening(self) -> Generator[None]:
        """Take SIGINT while the context lasts; off the main thread, which signals never reach, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def note(*_: object) -> None:
            self.noticed = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Leave Tune's loop by KeyboardInterrupt once SIGINT was noted."""
        if not self.noticed:
            return
        for trial in trials:
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        raise KeyboardInterrupt
