"""Room on the disk that a dataset goes to: enough before it is written, and what is said if there is not."""

import errno
import shutil
import time
from pathlib import Path

from voxray.config.errors import InputError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_REMOVE_TRIES, _REMOVE_WAIT_S = 20, 0.25  # tasks that are being cancelled may still be writing


def check_free_space(out: Path, num_bytes: int) -> None:
    """Raise InputError when the disk of `out` has not `num_bytes` free."""
    folder, free = _free_space(out)
    if num_bytes > free:
        raise InputError(
            f"the dataset needs about {num_bytes / 1e6:,.1f} MB, but '{folder}' has {free / 1e6:,.1f} MB "
            "free; make room, or name a folder on another disk"
        )


def full_or_unwritable(out: Path, error: OSError, num_bytes: int) -> InputError:
    """Return what the user is told of an error while `out` was written."""
    if error.errno in _FULL_DISK:
        folder, free = _free_space(out)
        return InputError(
            f"'{folder}' became full while the dataset was written: it needs about {num_bytes / 1e6:,.1f} "
            f"MB, {free / 1e6:,.1f} MB are free now; make room, or name a folder on another disk"
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return InputError(f"'{out}' was made by another process meanwhile; name another folder")
    return InputError(f"'{out}' cannot be written: {error.strerror or error}; name a folder that can")


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    for _ in range(_REMOVE_TRIES):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0 if not folder.exists() else _REMOVE_WAIT_S)


def _free_space(out: Path) -> tuple[Path, int]:
    """Return the nearest folder above `out` that exists and the free bytes there."""
    folder = next(folder for folder in out.parents if folder.exists())
    return folder, shutil.disk_usage(folder).free
