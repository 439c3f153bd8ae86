"""STUDY: the folder of one search, locked while it is searched: study.json, journal, trials, best.yaml."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from voxray.config.errors import InputError
from voxray.config.files import display
from voxray.config.resolve import leaves
from voxray.train.run_folder import FREE_SECTIONS
from voxray.tune.plan import WORDS, Plan
from voxray.tune.study import JOURNAL, StudyLedger, TrialRow

DESCRIPTION, LOCK, BEST = "study.json", "study.lock", "best.yaml"
OTHER_NAME = "give this study another name with experiment_name="
# What may differ when a study is continued: what changes no trial's value, and more trials.
FREE = (
    *(("config", section) for section in (*FREE_SECTIONS, *WORDS, "run")),
    *(("space", key) for key in ("experiment", *WORDS)),
    ("space", "search", "trials"),
    ("space", "search", "max_concurrent"),
)


@contextmanager
def open_study(plan: Plan) -> Generator[StudyLedger]:
    """Open the plan's study for this process alone, or begin it.

    Raises InputError when another process searches it, or when it was begun with another space or experiment.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{plan.folder}: another `voxray tune` searches this study; wait for it, or {OTHER_NAME}"
        ) from error
    try:
        _describe(plan)
        search = plan.space.config.search
        yield StudyLedger(
            plan.folder, search.space, plan.space.config.objective, search.sampler, search.trials
        )
    finally:
        lock.release()


def _describe(plan: Plan) -> None:
    """Write study.json, or check that it describes the same study."""
    file = plan.folder / DESCRIPTION
    now = {
        "space": plan.space.config.model_dump(mode="json"),
        "experiment": display(plan.base.file) if plan.base.file else "",
        "config": plan.base.config.model_dump(mode="json"),
    }
    before = _read(file) if file.exists() else {}
    if not before and (plan.folder / JOURNAL).exists():
        raise InputError(f"{plan.folder} holds a journal without {DESCRIPTION}; {OTHER_NAME}")
    if before and (different := differences(before, now)):
        raise InputError(f"{plan.folder} began with another space or experiment; {OTHER_NAME}", *different)
    partial = file.with_name(f".{DESCRIPTION}.partial")
    started = before.get("started") or datetime.now(UTC).isoformat()
    partial.write_text(json.dumps({**now, "started": started}, indent=1))
    partial.replace(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is broken ({error}); {OTHER_NAME}") from error


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return, a line each, the values that keep a study from being continued."""
    old, new = _compared(before), _compared(now)
    return [
        f"{'.'.join(path[1:])}: {_said(path, old)} before, {_said(path, new)} now"
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


def _compared(described: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    both = {part: described.get(part) for part in ("space", "config")}
    return {path: value for path, value in leaves(both) if not any(path[: len(f)] == f for f in FREE)}


def _said(path: tuple[str, ...], values: dict[tuple[str, ...], Any]) -> str:
    return json.dumps(values[path]) if path in values else "nothing"


def write_best(plan: Plan, best: TrialRow, num_complete: int) -> Path:
    """Write the best trial as an experiment file that needs no base; return its path."""
    objective = plan.space.config.objective
    extreme = "highest" if objective.mode == "max" else "lowest"
    head = (
        f"# Trial {best.index} of study {plan.name}: {objective.metric} = {best.value!r}\n"
        f"# at step {best.step}, the {extreme} of {num_complete} complete trials.\n"
    )
    file = plan.folder / BEST
    file.write_text(head + plan.trial(best.index, best.values).to_yaml())
    return file
