"""Checkpoints: a folder under a temporary name, every file's sha256 in a manifest written last, fsync,
rename.

A folder without a valid manifest does not exist for us. A corrupt one is set aside and the one before it is
used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from voxray.config.errors import RunError

MANIFEST = "MANIFEST.json"
BEST = "best.json"
PREFIX = "step-"


def save(
    folder: Path, step: int, model: dict[str, torch.Tensor], state: dict[str, Any], config: dict[str, Any]
) -> Path:
    """Write the checkpoint of `step` below `folder` and return its path. It appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    partial = folder / f".{final.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in model.items()},
        partial / "model.safetensors",
    )
    torch.save(state, partial / "state.pt")
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    files = {
        path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(partial.iterdir())
    }
    (partial / MANIFEST).write_text(json.dumps({"version": 1, "step": step, "files": files}, indent=1))
    for path in (*partial.iterdir(), partial):
        _fsync(path)
    if final.exists():  # the same update, saved again after a resume
        shutil.rmtree(final)
    partial.rename(final)
    _fsync(folder)
    return final


def problem(checkpoint: Path) -> str | None:
    """Return why a checkpoint cannot be used, or None when every file is what the manifest says."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if _sha256(checkpoint / name) != expected["sha256"]:
                return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest or a file is missing or broken ({error})"
    return None


def load(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Verify and return (model tensors, state). Raises RunError naming what is wrong with it."""
    wrong = problem(checkpoint)
    if wrong:
        raise RunError(f"checkpoint {checkpoint} cannot be used: {wrong}")
    try:
        model = load_file(checkpoint / "model.safetensors")
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"checkpoint {checkpoint} cannot be read: {error}") from error
    return model, state


def newest(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """Return the newest valid checkpoint; a corrupt one is renamed to `corrupt-…` and `tell` says so."""
    for checkpoint in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        wrong = problem(checkpoint)
        if wrong is None:
            return checkpoint
        aside = checkpoint.with_name(f"corrupt-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        tell(
            f"checkpoint {checkpoint.name} cannot be used: {wrong}; "
            f"set aside as {aside.name}, using the one before"
        )
    return None


def point_best(folder: Path, checkpoint: Path, metric: str, value: float) -> None:
    """Let `best` name a checkpoint; a pointer, never a copy."""
    partial = folder / f".{BEST}.partial-{os.getpid()}"
    partial.write_text(json.dumps({"checkpoint": checkpoint.name, "metric": metric, "value": value}))
    _fsync(partial)
    partial.rename(folder / BEST)
    _fsync(folder)


def best(folder: Path) -> Path | None:
    """Return the checkpoint that `best` names, or None when there is no pointer or its checkpoint is gone."""
    pointer = folder / BEST
    if not pointer.exists():
        return None
    checkpoint = folder / json.loads(pointer.read_text())["checkpoint"]
    return checkpoint if checkpoint.exists() else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and the best one, and what killed saves left behind."""
    held = best(folder)
    for checkpoint in sorted(folder.glob(f"{PREFIX}*"), reverse=True)[keep:]:
        if checkpoint != held:
            shutil.rmtree(checkpoint)
    for partial in folder.glob(f".{PREFIX}*.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
