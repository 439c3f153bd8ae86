"""Pointers: small files that name a checkpoint, never copies of it.

`best.json` names the best of the newest stage that has one, `best-<stage index>.json` the best and
`last-<stage index>.json` the last of one stage. A checkpoint's manifest says which of them should name it, so
a pointer that a kill left behind can be made anew.
"""

import json
import os
from pathlib import Path
from typing import Any

from voxray.config.errors import RunError
from voxray.data.manifest import fsync_folder
from voxray.train.checkpoints.files import write_file

BEST = "best.json"


def wanted_by(checkpoint: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {pointer's file name: its content} as the checkpoint's manifest asks for it."""
    pointers: dict[str, dict[str, Any]] = {}
    best, ends_stage = manifest["best"], manifest["ends_stage"]
    if best:
        content = {
            "checkpoint": checkpoint.name,
            "metric": best["metric"],
            "value": best["value"],
            "stage": best["stage_name"],
        }
        pointers = {BEST: content, f"best-{best['stage_index']}.json": content}
    if ends_stage is not None:
        pointers[f"last-{ends_stage}.json"] = {"checkpoint": checkpoint.name}
    return pointers


def move(folder: Path, wanted: dict[str, dict[str, Any]]) -> None:
    """Write each pointer that does not say what is wanted; each changes whole or not at all."""
    for name, content in wanted.items():
        try:
            right = (folder / name).exists() and read(folder / name) == content
        except RunError:
            right = False
        if not right:
            partial = folder / f".{name}.partial-{os.getpid()}"
            write_file(partial, lambda file, content=content: file.write(json.dumps(content).encode()))
            partial.rename(folder / name)
            fsync_folder(folder)


def read(path: Path) -> dict[str, Any]:
    """Return a pointer's content. Raises RunError when the file is broken."""
    try:
        content = json.loads(path.read_bytes())
        name = content["checkpoint"]
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{name!r} is no checkpoint's name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is broken ({error}); delete it, and resuming the run makes it anew"
        ) from error
    return content


def follow(path: Path) -> Path | None:
    """Return the checkpoint that a pointer names, or None when either of them is not there."""
    if not path.exists():
        return None
    checkpoint = path.parent / read(path)["checkpoint"]
    return checkpoint if checkpoint.exists() else None


def named(folder: Path) -> set[str]:
    """Return the names of all checkpoints that a pointer names. Raises RunError when a pointer is broken."""
    files = [*folder.glob("best*.json"), *folder.glob("last-*.json")]
    return {read(path)["checkpoint"] for path in files}
