"""Runs side by side: what they were for, how they ended, and only the config keys in which they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.resolve import leaves
from voxray.config.secrets import masked
from voxray.report.read import RunFiles, read_run

WORDS = ("experiment_name", "description", "hypothesis", "expected", "tags")
SAME_BY_NATURE = ("run.name", *WORDS)  # words and names are shown on top, not as differences


def compare(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one row per fact, a column per run: words, status, values, the config keys that differ.

    Raises InputError when there are fewer than two runs, or a folder is no run.
    """
    if len(folders) < 2:
        raise InputError("compare needs two runs or more; `voxray ls runs` lists them")
    runs = {str(folder): read_run(folder) for folder in folders}
    facts = {name: _facts(run) for name, run in runs.items()}
    configs = {
        name: {".".join(path): masked(".".join(path), value) for path, value in leaves(run.config)}
        for name, run in runs.items()
    }
    differing = [
        path
        for path in dict.fromkeys(path for config in configs.values() for path in config)
        if path not in SAME_BY_NATURE and not path.startswith("tags.") and _differs(path, configs)
    ]
    rows = [_row(fact, facts) for fact in dict.fromkeys(fact for each in facts.values() for fact in each)]
    return rows + [_row(path, configs) for path in differing]


def _facts(run: RunFiles) -> dict[str, Any]:
    facts = {word: run.config[word] for word in WORDS if run.config.get(word)}
    facts["status"] = run.end.get("status", "not finished")
    if run.best:
        facts[f"best {run.best['metric']}"] = run.best["value"]
    for split, evaluation in run.evaluations.items():
        for name, value in evaluation["metrics"].items():
            if isinstance(value, int | float):
                facts[f"{split}/{name} evaluated"] = value
                bounds = (evaluation.get("intervals") or {}).get(name)
                facts |= {f"{split}/{name} 95 % interval": bounds} if bounds else {}
    return facts


def _differs(path: str, configs: dict[str, dict[str, Any]]) -> bool:
    first, *others = (config.get(path) for config in configs.values())
    return any(value != first for value in others)


def _row(what: str, by_run: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"what": what, **{name: values.get(what) for name, values in by_run.items()}}
