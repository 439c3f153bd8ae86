"""What a finished run keeps besides its checkpoints: `checkpoints.export_stages` and `evaluate_at_end`.

RUN/models/NAME_STAGE.pth holds a stage's best weights, RUN/EXPERIMENT_predictions.parquet and .pt the
predictions of a split. `exports.json` says which files the run itself wrote: no other is ever replaced.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from voxray.config.errors import InputError
from voxray.core.run_config import RunConfig, Stage
from voxray.train.checkpoints import checkpoint
from voxray.train.run_folder import RunFolder
from voxray.train.trained.evaluate_run import evaluate_run, result_files
from voxray.train.trained.load import find, load
from voxray.train.trained.output import whole
from voxray.train.trained.predictions import save_as_tensors

RECORD = "exports.json"
MODELS = "models"


@dataclass
class Results:
    """What was made now: files, and evaluations as `evaluate_run` returns them; notes are for the user."""

    files: list[Path] = field(default_factory=list[Path])
    evaluations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    notes: list[str] = field(default_factory=list[str])


def write_results(run: RunFolder, config: RunConfig) -> Results:
    """Write what `config.checkpoints` wants of the finished run and what is not there yet; needs no Ray.

    What is there from the same weights stays. A file that the run did not write, or that was changed since,
    is left alone and noted; so is a split that cannot be evaluated, as the training is done all the same.
    Raises InputError where a file cannot be written, RunError when a checkpoint is damaged or the disk is
    full.
    """
    results, record = Results(), _Record(run)
    for name, weights in _stage_weights(run, config, results.notes):
        record.put(name, weights.name, lambda path, weights=weights: _write_weights(path, weights), results)
    for split in config.checkpoints.evaluate_at_end:
        _evaluate(run, config, split, record, results)
    return results


def predictions_stem(config: RunConfig, split: str) -> str:
    """Return the name, without its ending, of a split's predictions: the guide's for the validation split."""
    return f"{config.experiment_name or config.run_name}_predictions" + (
        "" if split == "val" else f"_{split}"
    )


def _stage_weights(run: RunFolder, config: RunConfig, notes: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield (file's name, checkpoint) of each stage that is exported."""
    stages = config.resolved_stages()
    name = config.checkpoints.export_name or config.run_name
    for stage in stages:
        if stage.name not in config.checkpoints.export_stages:
            continue
        weights = _checkpoint_of(run, stage, is_last=stage.index + 1 == len(stages))
        if weights is None:
            notes.append(f"no checkpoint of stage '{stage.name}' is left, so its weights are not exported")
        else:
            yield f"{MODELS}/{name}_{stage.name}.pth", weights


def _checkpoint_of(run: RunFolder, stage: Stage, is_last: bool) -> Path | None:
    """Return a stage's best checkpoint, else its last one."""
    folder = run.checkpoints
    kept = checkpoint.best(folder, stage.index) or checkpoint.last(folder, stage.index)
    return kept or (checkpoint.last(folder) if is_last else None)


def _write_weights(out: Path, weights: Path) -> None:
    torch.save(checkpoint.load_weights(weights), out)


def _evaluate(run: RunFolder, config: RunConfig, split: str, record: "_Record", results: Results) -> None:
    """Evaluate a split unless that was done with these weights, and give its predictions their names."""
    predictions, evaluation = result_files(run.path, split)
    try:
        weights = find(run.path)[0].name
        if _checkpoint_in(evaluation) != weights:
            results.evaluations.append(evaluate_run(load(run.path), split))
            results.files.append(evaluation)
    except InputError as error:
        results.notes.append(f"split '{split}' was not evaluated: {error}")
        return
    if not predictions.exists():  # a task that evaluates sums alone has none
        return
    stem = predictions_stem(config, split)
    record.put(f"{stem}.parquet", weights, lambda path: _link(predictions, path), results)
    record.put(f"{stem}.pt", weights, lambda path: save_as_tensors(path, predictions), results)


def _checkpoint_in(evaluation: Path) -> str:
    """Return the checkpoint that an evaluation is of; '' where there is none or it is broken."""
    try:
        return str(json.loads(evaluation.read_text())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _link(there: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(there, name)
    except OSError:
        shutil.copyfile(there, name)


class _Record:
    """RUN/exports.json: per file the checkpoint that it was made of, and the sha256 of all that was written.

    The digest is noted before the file gets its name, so a kill between leaves no file that is not known.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run, self._file = run, run.path / RECORD
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            self._entries = json.loads(self._file.read_text())["files"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._file} is broken ({error}); delete it and the files that it names"
            ) from error

    def put(self, name: str, weights: str, write: Callable[[Path], None], results: Results) -> None:
        """Write RUN/name of the checkpoint `weights`, unless it is there or is somebody else's."""
        out = self._run.path / name
        entry = self._entries.get(name, {"checkpoint": "", "sha256": []})
        if out.exists() or out.is_symlink():
            if not out.is_file() or _sha256(out) not in entry["sha256"]:
                results.notes.append(f"{out} is not what this run wrote, so it stays as it is")
                return
            if entry["checkpoint"] == weights and _sha256(out) == entry["sha256"][-1]:
                return
        with whole(out) as partial:
            write(partial)
            digest = _sha256(partial)
            others = [other for other in entry["sha256"] if other != digest]
            self._entries[name] = {"checkpoint": weights, "sha256": [*others, digest]}
            with whole(self._file) as record:
                record.write_text(json.dumps({"files": self._entries}, indent=1) + "\n")
        results.files.append(out)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
