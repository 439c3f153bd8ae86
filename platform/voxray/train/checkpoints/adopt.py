"""Go on from another run's checkpoint: it is offered to a run, whose next start takes it in as its newest.

PBT uses it: a member of a population takes over the state of a better one. The offer pins what is taken over;
only the process that writes a run's checkpoints may put it among them, hence the two steps.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from voxray.config.errors import RunError
from voxray.data.manifest import fsync_folder
from voxray.train.checkpoints.checkpoint import NAME, free_name, newest_first
from voxray.train.checkpoints.files import MANIFEST, read_manifest

OFFERED, ASIDE = "offered", "aside-"
POLL_S = 0.02


def step_of(checkpoint: Path) -> int:
    """Return the update after which a checkpoint was written."""
    match = NAME.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match[1])


def finished(folder: Path, step: int, timeout_s: float) -> Path | None:
    """Return the newest checkpoint once there is one of update `step` or later, since saves go on beside the
    training; after `timeout_s` the newest that there is, or None.
    """
    until = time.monotonic() + timeout_s
    while True:
        newest = next(iter(newest_first(folder)), None)
        if (newest and step_of(newest) >= step) or time.monotonic() > until:
            return newest
        time.sleep(POLL_S)


def offer(folder: Path, donor: Path) -> None:
    """Lay a checkpoint of another run of the same model ready for the run whose checkpoints are in `folder`.

    Its files are hard links, so that it stays whatever the other run deletes; copies where the file system
    refuses links. It is there whole or not at all, and replaces what was offered before. Raises RunError when
    it cannot be done.
    """
    # Beside the folder: a save that the run is still making removes what looks left behind in it.
    partial = folder.parent / f".{OFFERED}.partial-{os.getpid()}"
    try:
        manifest = read_manifest(donor)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name in (*manifest["files"], MANIFEST):
            _link(donor / name, partial / name)
        fsync_folder(partial)
        shutil.rmtree(folder / OFFERED, ignore_errors=True)
        partial.rename(folder / OFFERED)
        fsync_folder(folder)
    except (OSError, ValueError, KeyError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"checkpoint {donor} cannot be taken over to {folder}: {error}") from error


def take_in(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Make what was offered the newest checkpoint of `folder` and return it; None where nothing was.

    Checkpoints of later updates are set aside: renamed to `aside-…`, which nothing reads or deletes, and
    `tell` says so. For the process that writes here, before it begins.
    """
    offered = folder / OFFERED
    if not offered.exists():
        return None
    try:
        step = int(read_manifest(offered)["step"])
    except (OSError, ValueError, KeyError) as error:
        unusable = offered.rename(_free_aside(offered))
        tell(f"the checkpoint that was offered by another run cannot be used, see {unusable.name}: {error}")
        return None
    later = [path for path in newest_first(folder) if step_of(path) > step]
    aside = [path.rename(_free_aside(path)).name for path in later]
    taken = offered.rename(free_name(folder, step))
    fsync_folder(folder)
    said = f"; its own later checkpoints are {', '.join(aside)}" if aside else ""
    tell(f"goes on from another run's checkpoint of update {step}, kept as {taken.name}{said}")
    return taken


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _free_aside(checkpoint: Path) -> Path:
    number, aside = 1, checkpoint.with_name(f"{ASIDE}{checkpoint.name}")
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"{ASIDE}{checkpoint.name}-{number}")
    return aside
