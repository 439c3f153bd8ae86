"""Checkpoints: a folder under a temporary name, every file's sha256 in a manifest written last, fsync,
rename.

A folder without a valid manifest does not exist for us. A corrupt one is set aside and the one before it is
used. `best.json`, `best-<stage>.json` and `last-<stage>.json` name checkpoints, which are then kept.
"""

import errno
import json
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from voxray.config.errors import RunError
from voxray.data.manifest import fsync_folder
from voxray.train.checkpoints import pointers
from voxray.train.checkpoints.files import (
    VERSION,
    HashedFile,
    Tensors,
    at_once,
    read_manifest,
    read_tensors,
    verify,
    without_aliases,
    write_file,
    write_manifest,
    write_state,
    write_tensors,
)
from voxray.train.checkpoints.snapshot import Snapshot, lift, lower

PREFIX = "step-"
NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
STATE = "state"  # stem of the state's tensors
BYTES_BESIDE_TENSORS = 4 << 20  # headers, manifest and state without tensors, generously
DEFAULT_BYTES_PER_S = 150e6  # half of the measured (docs/log.md): rather too long is told than too short
MEASURED_FROM_BYTES = 32 << 20  # below, a save's time says little about its rate
SECONDS_PER_SAVE = 0.2  # folders and small files on the disk


@dataclass(frozen=True)
class Best:
    """Why a checkpoint is the best of its stage so far."""

    metric: str
    value: float
    stage_name: str
    stage_index: int


def write(folder: Path, snapshot: Snapshot, best: Best | None = None, ends_stage: int | None = None) -> Path:
    """Write a checkpoint below `folder` and return its path. It appears whole or not at all.

    It replaces none: a second one of the same update is `step-00000012.2`. `best` and `ends_stage` (the index
    of the stage whose last weights these are) go into the manifest. Raises RunError when the disk is full or
    refuses.
    """
    try:
        return _write_whole(
            folder, snapshot, {"best": vars(best) if best else None, "ends_stage": ends_stage}
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(folder, snapshot) from error
        raise RunError(
            f"the checkpoint of step {snapshot.step} could not be written to {folder}: {error}"
        ) from error


def problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used, or None when every file is what the manifest says."""
    return _examined(checkpoint, weights_alone=False)[1]


def load(checkpoint: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Verify and return ({stem: state dict}, state), on the CPU. Raises RunError naming what is wrong."""
    manifest = _verified(checkpoint, weights_alone=False)
    try:
        tensors = {
            stem: read_tensors(checkpoint, stem, manifest["aliases"].get(stem, {}))
            for stem in (name.removesuffix(".safetensors") for name in manifest["files"])
            if f"{stem}.safetensors" in manifest["files"]
        }
        plain = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        raise RunError(f"checkpoint {checkpoint} cannot be read: {_first_line(error)}") from error
    # An optimiser takes its moments as they are given: they get memory of their own, aligned as torch's is.
    own = {name: value.clone() for name, value in tensors.pop(STATE, {}).items()}
    return tensors, lower(plain, own)


def load_weights(checkpoint: Path) -> Tensors:
    """Return the weights that were evaluated: the moving average where there is one.

    Verifies their file alone. Raises RunError naming what is wrong.
    """
    manifest = _verified(checkpoint, weights_alone=True)
    stem = _weights_stem(manifest)
    aliases = manifest["aliases"].get(stem, {})
    try:
        return read_tensors(checkpoint, stem, aliases)
    except SafetensorError as error:
        raise RunError(f"checkpoint {checkpoint} cannot be read: {error}") from error


def newest(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Return the newest valid checkpoint; a corrupt one is renamed to `corrupt-…` and `tell` says so.

    The pointers are made anew from the manifests, since a save may have been killed before it moved them.
    For the process that writes here, before it begins.
    """
    found = None
    for checkpoint in newest_first(folder):
        wrong = problem(checkpoint)
        if wrong is None:
            found = checkpoint
            break
        if checkpoint.exists():  # else another process has just deleted it
            aside = _set_aside(checkpoint)
            tell(
                f"checkpoint {checkpoint.name} cannot be used: {wrong}; "
                f"set aside as {aside.name}, using the one before"
            )
    _mend_pointers(folder)
    return found


def last(folder: Path, stage_index: int | None = None) -> Path | None:
    """Return the newest checkpoint, or the last of a stage; `load` verifies it. None when there is none."""
    if stage_index is not None:
        return pointers.follow(folder / f"last-{stage_index}.json")
    return next(iter(newest_first(folder)), None)


def best(folder: Path, stage_index: int | None = None) -> Path | None:
    """Return the best checkpoint of a stage, by default of the newest stage that has one.

    None when there is no pointer or its checkpoint is gone. Raises RunError when the pointer is broken.
    """
    return pointers.follow(folder / (pointers.BEST if stage_index is None else f"best-{stage_index}.json"))


def prune(folder: Path, keep: int, tell: Callable[[str], None], known_valid: Path | None = None) -> None:
    """Delete all but the `keep` newest checkpoints, those that are pointed to, and the only valid one.

    Nothing is deleted until one that stays is valid: `known_valid`, or one that is verified now. Where a
    pointer is broken nothing is deleted, since it may name any.
    """
    checkpoints = newest_first(folder)
    try:
        held = pointers.named(folder)
    except RunError as error:
        tell(f"no checkpoint was deleted: {error}")
        return
    staying = [path for index, path in enumerate(checkpoints) if index < keep or path.name in held]
    leaving = [path for path in checkpoints if path not in staying]
    if leaving and known_valid not in staying and all(problem(path) for path in staying):
        rescued = next((path for path in leaving if problem(path) is None), None)
        tell(
            f"no newer checkpoint is valid, so {rescued.name} is kept"
            if rescued
            else f"no checkpoint in {folder} is valid, so none was deleted"
        )
        leaving = leaving[leaving.index(rescued) + 1 :] if rescued else []
    for checkpoint in leaving:
        remove(checkpoint)
    _remove_leftovers(folder)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; a reader sees it whole or not at all."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.partial-deleted")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


class Saver:
    """Writes the checkpoints of one run, moves its pointers and deletes what need not be kept.

    Asynchronous, all that happens in a thread while training goes on, one save at a time; a process that ends
    waits for it. A failure is raised as RunError by the next `save` or `wait`.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        asynchronous: bool,
        tell: Callable[[str], None],
        send: Callable[[], None] = lambda: None,
    ) -> None:
        """`keep` newest checkpoints stay beside those that are pointed to; `tell` may be called from the
        thread. `send` is called after each save: where the run is stored elsewhere, it copies it there.
        """
        self.folder = folder
        self.keep = keep
        self.asynchronous = asynchronous
        self.tell = tell
        self.send = send
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._bytes_in_flight = 0
        self._bytes_per_s = DEFAULT_BYTES_PER_S

    def save(self, snapshot: Snapshot, best: Best | None = None, ends_stage: int | None = None) -> None:
        """Write a snapshot, which must not change any more.

        `best` says that it is its stage's best so far. `ends_stage` is the index of the stage whose last
        weights these are, where a later stage begins with them: that checkpoint is kept.
        """
        self.wait()
        self._bytes_in_flight = snapshot.num_bytes
        self._thread = threading.Thread(
            target=self._run, args=(snapshot, best, ends_stage), name="checkpoint"
        )
        self._thread.start()
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written. Raises RunError when the last save failed."""
        if self._thread is not None:
            self._thread.join()
        self._thread, self._bytes_in_flight = None, 0
        error, self._error = self._error, None
        if isinstance(error, RunError):
            raise error
        if error is not None:
            raise RunError(f"a checkpoint could not be written to {self.folder}: {error!r}") from error

    def estimate_seconds(self, num_bytes: int) -> float:
        """Return about how long it takes until so many bytes are saved, after a save that is going on.

        The rate is that of the last save of 32 MB or more here; before the first, DEFAULT_BYTES_PER_S.
        """
        return (self._bytes_in_flight + num_bytes) / self._bytes_per_s + SECONDS_PER_SAVE

    def _run(self, snapshot: Snapshot, best: Best | None, ends_stage: int | None) -> None:
        try:
            self._save(snapshot, best, ends_stage)
        except BaseException as error:
            self._error = error

    def _save(self, snapshot: Snapshot, best: Best | None, ends_stage: int | None) -> None:
        before = time.monotonic()
        written = write(self.folder, snapshot, best, ends_stage)
        if snapshot.num_bytes >= MEASURED_FROM_BYTES:
            self._bytes_per_s = snapshot.num_bytes / (time.monotonic() - before)
        try:
            pointers.move(self.folder, pointers.wanted_by(written, read_manifest(written)))
            prune(self.folder, self.keep, self.tell, known_valid=written)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{written} is written, but older checkpoints or a pointer beside it could not be changed: "
                f"{error}"
            ) from error
        self.send()


def _write_whole(folder: Path, snapshot: Snapshot, marks: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    _require_space(folder, snapshot)
    partial_folder = folder / f".{PREFIX}{snapshot.step:08d}.partial-{os.getpid()}"
    partial_folder.mkdir()
    try:
        body = _write_files(partial_folder, snapshot)
        write_manifest(partial_folder, {"version": VERSION, "step": snapshot.step, **body, **marks})
        fsync_folder(partial_folder)
        final = free_name(folder, snapshot.step)
        partial_folder.rename(final)
        fsync_folder(folder)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return final


def _write_files(folder: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Write all files but the manifest at once, each to the disk; return their entries for it."""
    state_tensors: Tensors = {}
    plain = lift(snapshot.state, "", state_tensors)
    aliases: dict[str, dict[str, str]] = {}
    fills: dict[str, Callable[[HashedFile], Any]] = {}
    assert STATE not in snapshot.tensors
    for stem, tensors in {**snapshot.tensors, STATE: state_tensors}.items():
        kept, same = without_aliases(tensors)
        fills[f"{stem}.safetensors"] = partial(write_tensors, tensors=kept)
        if same:
            aliases[stem] = same
    fills["state.pt"] = partial(write_state, state=plain)
    text = json.dumps(snapshot.config, indent=1).encode()
    fills["config.json"] = lambda file: file.write(text)
    entries = at_once(partial(write_file, folder / name, fill) for name, fill in fills.items())
    return {"files": dict(zip(fills, entries, strict=True)), "aliases": aliases}


def _examined(checkpoint: Path, weights_alone: bool) -> tuple[dict[str, Any], str | None]:
    """Return the manifest and why the checkpoint, or its weights alone, cannot be used, or None."""
    try:
        manifest = read_manifest(checkpoint)
        files = manifest["files"]
        if weights_alone:
            name = f"{_weights_stem(manifest)}.safetensors"
            files = {name: files[name]}
        return manifest, verify(checkpoint, files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"its manifest is missing or broken ({error})"


def _verified(checkpoint: Path, weights_alone: bool) -> dict[str, Any]:
    manifest, wrong = _examined(checkpoint, weights_alone)
    if wrong:
        raise RunError(f"checkpoint {checkpoint} cannot be used: {wrong}")
    return manifest


def _weights_stem(manifest: dict[str, Any]) -> str:
    return "ema" if "ema.safetensors" in manifest["files"] else "model"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints below `folder`, the newest first; whether they are valid is not looked at."""
    found = {
        path: (int(match[1]), int(match[2] or 1))
        for path in folder.glob(f"{PREFIX}*")
        if (match := NAME.fullmatch(path.name))
    }
    return sorted(found, key=found.__getitem__, reverse=True)


def free_name(folder: Path, step: int) -> Path:
    """Return the name that the next checkpoint of this update takes."""
    plain = folder / f"{PREFIX}{step:08d}"
    taken = [path for path in newest_first(folder) if path.name.split(".")[0] == plain.name]
    if not taken:
        return plain
    match = NAME.fullmatch(taken[0].name)
    assert match
    return plain.with_name(f"{plain.name}.{int(match[2] or 1) + 1}")


def _set_aside(checkpoint: Path) -> Path:
    aside, number = checkpoint.with_name(f"corrupt-{checkpoint.name}"), 1
    while aside.exists():
        number += 1
        aside = checkpoint.with_name(f"corrupt-{checkpoint.name}-{number}")
    return checkpoint.rename(aside)


def _remove_leftovers(folder: Path) -> None:
    """Delete what killed saves and deletions left behind."""
    for path in folder.glob(".*.partial-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _require_space(folder: Path, snapshot: Snapshot) -> None:
    if shutil.disk_usage(folder).free < snapshot.num_bytes + BYTES_BESIDE_TENSORS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_space(folder: Path, snapshot: Snapshot) -> RunError:
    needed, free = snapshot.num_bytes + BYTES_BESIDE_TENSORS, shutil.disk_usage(folder).free
    return RunError(
        f"the checkpoint of step {snapshot.step} needs {needed / 1e6:.0f} MB in {folder}, where "
        f"{free / 1e6:.0f} MB are free (or your quota is used up); make room and give the same command "
        "again, which goes on from the newest checkpoint: none was deleted"
    )


def _mend_pointers(folder: Path) -> None:
    """Let each pointer name the newest checkpoint that asks for it."""
    wanted: dict[str, dict[str, Any]] = {}
    for checkpoint in reversed(newest_first(folder)):
        try:
            wanted.update(pointers.wanted_by(checkpoint, read_manifest(checkpoint)))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # an older one that is damaged asks for nothing
    pointers.move(folder, wanted)
