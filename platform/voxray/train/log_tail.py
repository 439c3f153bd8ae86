"""Reads what is appended to a run's log, whole lines only; several readers follow it at their own pace."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class LogTail:
    """A place in a log: the records after it have not been read."""

    def __init__(self, path: Path, position: int = 0) -> None:
        """Begin at byte `position`; the file need not exist yet."""
        self._path = path
        self.position = position

    def new(self) -> Iterator[tuple[int, Record]]:
        """Yield (byte after the record, record) of each whole line after `position`, which stays where it is.

        A line that a kill cut short is passed over once the next one has begun.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            end = file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                record = _record(line)
                if record is not None:
                    yield end, record


def _record(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "kind" in value else None
