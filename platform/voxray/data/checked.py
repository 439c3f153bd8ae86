"""Which windows of a shard were checked on this node, shared by its processes and kept over runs.

One small file per shard in the user's cache holds a byte per window. Its name is made of the shard's path,
inode, size and times of change, so a file that was written to since is checked anew.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from platformdirs import user_cache_path

from voxray.data.manifest import ShardInfo

_CHECKED = b"\1"
MAX_SHARDS = 20_000  # remembered; the older half is forgotten, and checked again, past it


class CheckedWindows:
    """The checked windows of one shard; `add` and `in` cost a byte written or read at most once each."""

    def __init__(self, path: Path, info: ShardInfo) -> None:
        """Look the shard up; without a cache that can be written, each process checks for itself.

        Raises OSError when the shard is not there.
        """
        status = path.stat()
        identity = (
            os.path.realpath(path),
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            info.sha256,
            *(window.xxh3 for window in info.windows),
        )
        name = hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
        self._file = user_cache_path("voxray") / "checked" / name
        self._here = {i for i, byte in enumerate(self._read()) if byte == _CHECKED[0]}

    def __contains__(self, window: int) -> bool:
        """Whether a process of this node has found the window's bytes to be the manifest's."""
        if window not in self._here and self._read()[window : window + 1] == _CHECKED:
            self._here.add(window)
        return window in self._here

    def add(self, window: int) -> None:
        """Note that the window's bytes are right."""
        self._here.add(window)
        with contextlib.suppress(OSError):
            if not self._file.exists():
                self._file.parent.mkdir(parents=True, exist_ok=True)
                forget_oldest(self._file.parent)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(descriptor, _CHECKED, window)
            finally:
                os.close(descriptor)

    def _read(self) -> bytes:
        try:
            return self._file.read_bytes()
        except OSError:
            return b""


def forget_oldest(folder: Path) -> None:
    """Remove the older half of a folder of small files where there are MAX_SHARDS of them."""
    files = list(folder.iterdir())
    if len(files) < MAX_SHARDS:
        return
    files.sort(key=lambda file: file.stat().st_mtime_ns)
    for file in files[: len(files) // 2]:
        file.unlink(missing_ok=True)
