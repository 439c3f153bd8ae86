"""Tools of the chaos tests: a task slow enough to be hit, and what a run's log says of its processes."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from voxray.core.batch import Batch
from voxray.testing.tiny import Tiny, TinyBatch


class SlowTiny(Tiny):
    """The tiny task with a pause before each batch."""

    PAUSE_S = 0.02

    def augment(self, batch: Batch, key: int) -> TinyBatch:
        """Wait, then augment."""
        time.sleep(self.PAUSE_S)
        return super().augment(batch, key)


class SlowerTiny(SlowTiny):
    """With a longer pause: a node's loss takes seconds to be noticed."""

    PAUSE_S = 0.15


class HangingTiny(Tiny):
    """With a batch that never comes: the first of a worker's second epoch on 100 rows, by 20."""

    NUM_BATCHES = 5

    def __init__(self, *args: Any) -> None:
        """Count batches from here."""
        super().__init__(*args)
        self._seen = 0

    def augment(self, batch: Batch, key: int) -> TinyBatch:
        """Augment, or hang."""
        self._seen += 1
        while self._seen > self.NUM_BATCHES:
            time.sleep(1)
        return super().augment(batch, key)


def log_of(run: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's log as they were written, those that a resume took back included."""
    file = run / "log.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def wait_for_step(run: Path, step: int, timeout_s: float = 120.0) -> list[dict[str, Any]]:
    """Wait until the newest attempt has logged update `step` or a later one, or the run has ended; return the
    log.

    Raises TimeoutError.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        records = log_of(run)
        newest = records[_start_of_newest(records) :]
        if any(each.get("kind") == "end" or each.get("step", 0) >= step for each in newest):
            return records
        time.sleep(0.01)
    raise TimeoutError(f"{run} did not come to update {step} in {timeout_s:g} s")


def kill_worker(run: Path, rank: int) -> int:
    """SIGKILL a worker of the newest attempt; return its process id."""
    attempts = [each for each in log_of(run) if each["kind"] == "workers"]
    pid = attempts[-1]["workers"][rank]["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def _start_of_newest(records: list[dict[str, Any]]) -> int:
    starts = [index for index, each in enumerate(records) if each["kind"] == "workers"]
    return starts[-1] if starts else len(records)
