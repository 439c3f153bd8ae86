"""What a cell's folder tells: whether it is done, and the scores of the evaluation that counts."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxray.train.run_folder import RunFolder, of_last_stage
from voxray.tune.config import ObjectiveConfig

FAILURE_FILE = "failed.json"  # in a cell's folder: why its last attempt failed

State = Literal["done", "failed", "unfinished", "new"]


@dataclass(frozen=True)
class CellState:
    """A cell as its files tell it. One that is `failed` or `unfinished` is trained on by the next command."""

    state: State
    scores: tuple[float, ...] | None = None
    step: int | None = None
    epochs: float = 0.0
    seconds: float = 0.0
    reason: str = ""


def read_cell(
    folder: Path, objectives: Sequence[ObjectiveConfig], value: Literal["best", "last"]
) -> CellState:
    """Read a cell's folder. Raises InputError for a log that is broken.

    A cell that is finished without a finite score is `done` without scores: to train it again is no use.
    """
    run = RunFolder(folder)
    if not run.log_file.exists():
        reason = _failure(folder)
        return CellState("failed", reason=reason) if reason else CellState("new")
    records = run.records()
    epochs = max((float(record["epochs"]) for record in records if "epochs" in record), default=0.0)
    if not run.is_finished():
        reason = _failure(folder)
        return CellState("failed" if reason else "unfinished", epochs=epochs, reason=reason)
    seconds = float(records[-1].get("time_s", 0.0))
    chosen = chosen_evaluation(records, objectives, value)
    if chosen is None:
        missing = ", ".join(objective.metric for objective in objectives)
        return CellState(
            "done", epochs=epochs, seconds=seconds, reason=f"{missing}: no finite number to compare"
        )
    scores = tuple(float(chosen[objective.metric]) for objective in objectives)
    return CellState("done", scores, int(chosen["step"]), epochs, seconds)


def chosen_evaluation(
    records: Sequence[dict[str, Any]], objectives: Sequence[ObjectiveConfig], value: Literal["best", "last"]
) -> dict[str, Any] | None:
    """Return the evaluation of the last stage that counts: the last, or the one that is best by the first
    objective.

    All objectives are read from that one, as they are of one model. None where a number is missing.
    """
    first = objectives[0]
    evaluations = [r for r in records if r.get("kind") in ("epoch", "validation") and first.metric in r]
    found = of_last_stage(evaluations)
    if value == "best":
        found = [record for record in found if _is_finite(record[first.metric])]
        chosen = min(found, key=lambda record: first.sign * record[first.metric], default=None)
    else:
        chosen = found[-1] if found else None
    whole = chosen is not None and all(_is_finite(chosen.get(o.metric)) for o in objectives)
    return chosen if whole else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def note_failure(folder: Path, reason: str) -> None:
    """Write down why a cell's attempt failed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE_FILE).write_text(json.dumps({"reason": reason}))


def _failure(folder: Path) -> str:
    try:
        return str(json.loads((folder / FAILURE_FILE).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
