"""A node's copy of remote shards: bounded, verified, shared by the node's processes, evicted by last use.

A shard is kept under its sha256, so datasets, trials and workers that name the same bytes share one file. It
is fetched under a lock to a temporary name, hashed there, and renamed when the hash is the manifest's.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from voxray.data.config import DataConfig
from voxray.data.manifest import ShardInfo
from voxray.data.reader import ShardError
from voxray.data.store import READ_ERRORS, Store

FETCHES_AT_ONCE = 4
TRIES, FIRST_WAIT_S = 4, 0.5  # waits double from try to try
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ShardCache:
    """The cache in `folder`, of at most `limit_bytes`."""

    folder: Path
    limit_bytes: int

    def fetch(self, store: Store, info: ShardInfo) -> Path:
        """Return the local copy of a shard, fetched if it is not there.

        Raises ShardError when it cannot be fetched whole in several tries, or does not fit.
        """
        path = self._path(info)
        with contextlib.suppress(FileNotFoundError):
            _touch(path)
            return path
        if info.bytes > self.limit_bytes:
            raise ShardError(
                f"shard '{store.describe(info.file)}' has {info.bytes / 1e9:.2f} GB, the cache "
                f"'{self.folder}' may hold {self.limit_bytes / 1e9:.2f} GB; raise data.cache_gb"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                self._fetch(store, info, path)
        _touch(path)
        return path

    def made(self, name: str, num_bytes: int, make: Callable[[Path], None]) -> Path:
        """Return the kept file of that name (hex); where it is not there, `make` writes it, once per node.

        `num_bytes` is about its size. Errors of `make` pass through, and nothing is kept then.
        """
        path = self.folder / f"{name}.arrow"
        with contextlib.suppress(FileNotFoundError):
            _touch(path)
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                partial = path.with_name(f"{name}.partial-{secrets.token_hex(4)}")
                self._make_room(num_bytes)
                try:
                    make(partial)
                    partial.rename(path)
                finally:
                    partial.unlink(missing_ok=True)
        _touch(path)
        return path

    def fetch_ahead(self, store: Store, infos: Sequence[ShardInfo]) -> None:
        """Begin to fetch shards in the background; an error is met again when the shard is asked for."""
        if sum(info.bytes for info in infos) > self.limit_bytes // 2:
            return  # they would push out what is being read
        for info in infos:
            if not self._path(info).exists():
                _background().submit(self._fetch_quietly, store, info)

    def _fetch_quietly(self, store: Store, info: ShardInfo) -> None:
        with contextlib.suppress(Exception):
            self.fetch(store, info)

    def _path(self, info: ShardInfo) -> Path:
        return self.folder / f"{info.sha256}.arrow"

    def _fetch(self, store: Store, info: ShardInfo, path: Path) -> None:
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            partial = path.with_name(f"{info.sha256}.partial-{secrets.token_hex(4)}")
            try:
                self._make_room(info.bytes)
                store.download(info.file, partial)
                if _sha256(partial) == info.sha256:
                    partial.rename(path)
                    return
                reason = "its sha256 is not the manifest's"
            except READ_ERRORS as error:
                if isinstance(error, OSError) and error.errno in _FULL_DISK and not self._evict_one():
                    raise ShardError(
                        f"the disk of the cache '{self.folder}' is full and nothing is left to evict; make "
                        "room, or set data.cache_dir to a folder on another disk"
                    ) from error
                reason = str(error) or type(error).__name__
            finally:
                partial.unlink(missing_ok=True)
        raise ShardError(
            f"shard '{store.describe(info.file)}' could not be fetched in {TRIES} tries: {reason}; "
            "check that it is there, or prepare the dataset again"
        )

    def _make_room(self, num_bytes: int) -> None:
        """Evict what was used longest ago until `num_bytes` more stay within the limit."""
        with FileLock(self.folder / "evict.lock"):
            self._remove_abandoned()
            kept = sum(size for _, size, _ in self._entries())
            for _, size, path in self._entries():
                if kept + num_bytes <= self.limit_bytes:
                    return
                path.unlink(missing_ok=True)
                kept -= size

    def _evict_one(self) -> bool:
        """Evict the shard that was used longest ago; False where there is none."""
        for _, _, path in self._entries():
            path.unlink(missing_ok=True)
            return True
        return False

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return (last use, bytes, path) of the kept shards, the longest unused first."""
        found = []
        for path in self.folder.glob("*.arrow"):
            with contextlib.suppress(FileNotFoundError):
                used = path.with_suffix(".used")
                last = used.stat().st_mtime_ns if used.exists() else 0
                found.append((last, path.stat().st_size, path))
        return sorted(found)

    def _remove_abandoned(self) -> None:
        """Remove partial files of processes that died: those whose shard nobody is fetching."""
        for partial in self.folder.glob("*.partial-*"):
            lock = FileLock(self.folder / f"{partial.name.split('.')[0]}.lock", timeout=0)
            if lock.is_locked:
                continue
            with contextlib.suppress(Timeout), lock:
                partial.unlink(missing_ok=True)


def node_cache(config: DataConfig) -> ShardCache:
    """Return the node's cache, as the `data` section sets it."""
    folder = Path(config.cache_dir) if config.cache_dir else user_cache_path("voxray") / "shards"
    return ShardCache(folder, int(config.cache_gb * 1e9))


@lru_cache(maxsize=1)
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="voxray-fetch")


def _touch(path: Path) -> None:
    """Note the use of a shard, in a file beside it: its own times are part of what was checked.

    Raises FileNotFoundError when it is not there.
    """
    os.stat(path)
    path.with_suffix(".used").touch()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
