"""Files and folders that a command leaves: whole or not at all, and never over something that exists."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxray.config.errors import InputError, RunError


def refuse_existing(out: Path) -> None:
    """Raise InputError where `out` exists."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out} exists and is never overwritten; name another one, or delete it first")


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yield a path of the same name in a folder beside `out`: what is written there becomes `out` at the end.

    Other files that were written into that folder move along, before it. Raises InputError where `out` cannot
    be written, RunError when the disk is full; of a block that fails nothing is left.
    """
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder / out.name
        for part in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
            part.replace(out.with_name(part.name))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"the disk is full: {out} was not written; free some space") from error
        raise InputError(f"{out} cannot be written: {error}; name another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
