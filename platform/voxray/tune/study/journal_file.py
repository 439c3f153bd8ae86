"""Optuna's journal file, put on the disk for sure where a study begins or a trial ends, not with every line.

A killed process loses nothing that was written. What a machine without power loses is the last moments of
trials that were running, and these run again anyway. A trial makes about eleven lines, an `fsync` takes
milliseconds, so a thread does it while the next trial begins.
"""

import contextlib
import json
import os
import threading
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

# Optuna's numbers of "create a study" and "set a trial's state and values".
LASTING = (0, 6)


class JournalFile(JournalFileBackend):
    """The same lines in the same file, under the same lock, for any reader of Optuna's."""

    def __init__(self, file_path: str) -> None:
        """Open the journal at a path, or begin it."""
        self._path, self._writing = file_path, JournalFileSymlinkLock(file_path)
        super().__init__(file_path, self._writing)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, a line each."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._writing.acquire()
        try:
            with open(self._path, "ab") as file:
                file.write(lines.encode())
        finally:
            self._writing.release()
        if any(log["op_code"] in LASTING for log in logs):
            threading.Thread(target=_sync, args=(self._path,), name="fsync").start()


def _sync(path: str) -> None:
    """Put what was written to a file on the disk."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # the next write tells what is wrong
        os.fsync(file.fileno())
