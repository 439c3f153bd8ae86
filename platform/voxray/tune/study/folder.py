"""STUDY: the folder of one search, locked while it is searched: study.json, journal, trials, best.yaml."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from voxray.config.errors import InputError
from voxray.config.files import display
from voxray.config.resolve import leaves
from voxray.train.run_folder import FREE_SECTIONS
from voxray.tune.ledger import TrialRow
from voxray.tune.plan import WORDS, Plan
from voxray.tune.study.journal import JOURNAL
from voxray.tune.study.ledger import StudyLedger

if TYPE_CHECKING:
    from voxray.train.mirror import Mirror

DESCRIPTION, LOCK, BEST, FRONT = "study.json", "study.lock", "best.yaml", "front"
OTHER_NAME = "give this study another name with experiment_name="
# What may differ when a study is continued: what changes no trial's value, and more trials.
FREE = (
    *(("config", section) for section in (*FREE_SECTIONS, *WORDS, "run")),
    *(("space", key) for key in ("experiment", *WORDS)),
    *(("space", "search", key) for key in ("trials", "seconds", "gpu_hours", "max_concurrent", "executor")),
)
# An ablation's cells are found by their own config: more arms, seeds and metrics reuse those that are done.
FREE_OF_ABLATION = (*FREE, ("space", "ablate"), ("space", "objective"))


@contextmanager
def open_study(plan: Plan) -> Generator[StudyLedger]:
    """Open the plan's study for this process alone, or begin it.

    Raises InputError when another process searches it, or when it was begun with another space or experiment.
    """
    with locked_study(plan):
        yield StudyLedger(plan.folder, plan.rules())


@contextmanager
def locked_study(plan: Plan) -> Generator[None]:
    """Hold the plan's STUDY folder for this process alone, with its study.json written or checked. Where
    `storage.path` is a URL, it is fetched first and sent at the end; the lock is this machine's.

    Raises InputError when another process holds it, or when it was begun with another space or experiment.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{plan.folder}: another voxray works on this study; wait for it, or {OTHER_NAME}"
        ) from error
    mirror = mirror_of(plan)
    try:
        if mirror:
            mirror.open()
        _describe(plan)
        yield
        if mirror:
            mirror.close()
    finally:
        lock.release()


def mirror_of(plan: Plan) -> "Mirror | None":
    """Return the mirror of the plan's STUDY, without its trials, each of which is a run with its own."""
    from voxray.train.mirror import STUDY_LOG, Mirror

    return Mirror.of(plan.base.config.storage.path, plan.folder, STUDY_LOG)


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
    both: dict[str, Any] = {part: described.get(part) for part in ("space", "config")}
    free = FREE_OF_ABLATION if dict(both["space"] or {}).get("ablate") else FREE
    return {path: value for path, value in leaves(both) if not any(path[: len(f)] == f for f in free)}


def _said(path: tuple[str, ...], values: dict[tuple[str, ...], Any]) -> str:
    return json.dumps(values[path]) if path in values else "nothing"


def write_best(plan: Plan, ledger: StudyLedger) -> list[Path]:
    """Write the best trial as an experiment file that needs no base, or one file per trial of the front.

    Return their paths: STUDY/best.yaml, or STUDY/front/<index>.yaml where there are several objectives.
    """
    objectives = plan.space.config.objectives
    num_complete = sum(row.state == "complete" for row in ledger.rows())
    if len(objectives) == 1:
        best = ledger.best()
        if best is None:
            return []
        extreme = "highest" if objectives[0].mode == "max" else "lowest"
        why = f"the {extreme} of {num_complete} complete trials"
        return [_write_experiment(plan, best, plan.folder / BEST, why)]
    folder = plan.folder / FRONT
    front = ledger.front()
    folder.mkdir(exist_ok=True)
    for file in set(folder.glob("*.yaml")) - {folder / _front_name(row) for row in front}:
        file.unlink()  # of a trial that another has beaten since
    why = f"no other of {num_complete} complete trials is better in all"
    return [_write_experiment(plan, row, folder / _front_name(row), why) for row in front]


def _front_name(row: TrialRow) -> str:
    return f"{row.index:04d}.yaml"


def _write_experiment(plan: Plan, row: TrialRow, file: Path, why: str) -> Path:
    metrics = (objective.metric for objective in plan.space.config.objectives)
    told = ", ".join(f"{metric} = {score!r}" for metric, score in zip(metrics, row.scores or (), strict=True))
    head = f"# Trial {row.index} of study {plan.name}: {told}\n# at step {row.step}; {why}.\n"
    seeds = plan.search.seeds
    if seeds:
        head += f"# The mean over seeds {list(seeds)}; this file has the first.\n"
    if plan.search.scheduler.name == "pbt":
        head += (
            "# Its values changed while it trained; these are the last. The weights are in its checkpoints.\n"
        )
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(head + plan.trial(row.index, row.values, seeds[0] if seeds else None).to_yaml())
    partial.replace(file)
    return file
