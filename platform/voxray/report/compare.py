"""Runs side by side: what they were for, how they ended, and only the config keys in which they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.config.errors import InputError
from voxray.config.resolve import leaves
from voxray.config.secrets import masked
from voxray.report.ablation import is_ablation
from voxray.report.read import RunFiles, read_run
from voxray.report.study.read import StudyFiles, read_study
from voxray.report.study.trials import Trial
from voxray.train.at_hand import at_hand

WORDS = ("experiment_name", "description", "hypothesis", "expected", "tags")
OF_A_TRIAL = ("experiment_name", "description")  # a search writes them, and they say the trial's number alone
SAME_BY_NATURE = ("run.name", *WORDS)  # words and names are shown on top, not as differences
DEFAULT_TOP = 5
Facts = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One row per fact: `what`, and its value under each run's short name. `shared`: words of all runs."""

    rows: list[dict[str, Any]]
    shared: Facts

    @property
    def differing(self) -> list[dict[str, Any]]:
        """The rows without the words that all runs share."""
        return [row for row in self.rows if row["what"] not in self.shared]


def compare(folders: Sequence[Path], top: int = DEFAULT_TOP) -> Comparison:
    """Return the runs' words, status and values, and the config keys that differ; of a study its best trials,
    `top` of them (with several objectives the front's first), the first seed's run of each.

    Raises InputError when there are fewer than two runs, or a folder is neither a run nor a study.
    """
    known = [(folder, facts) for given in folders for folder, facts in _runs_of(at_hand(given), top)]
    if len(known) < 2:
        raise InputError(
            "compare needs two runs or more, or a study with two complete trials; `voxray ls runs` and "
            "`voxray ls studies` list what there is"
        )
    names = short_names([folder for folder, _ in known])
    runs = {name: read_run(folder) for name, (folder, _) in zip(names, known, strict=True)}
    facts = {
        name: {"folder": str(folder)} | _facts(runs[name], left_out=OF_A_TRIAL if told else ()) | told
        for name, (folder, told) in zip(names, known, strict=True)
    }
    first = facts[names[0]]
    shared = {
        word: first[word]
        for word in WORDS
        if word in first and all(each.get(word) == first[word] for each in facts.values())
    }
    rows = [_row(fact, facts) for fact in dict.fromkeys(fact for each in facts.values() for fact in each)]
    return Comparison(rows + _differing_keys(runs), shared)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as it takes to tell all of them apart.

    Raises InputError for a folder that was named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(folder for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1)
    raise InputError(f"{twice} is named twice; a run does not differ from itself")


def _runs_of(folder: Path, top: int) -> list[tuple[Path, Facts]]:
    """Return a run's folder, or those of a study's best trials with what the study says of each."""
    if not (folder / "study.json").is_file():
        return [(folder, {})]
    if is_ablation(folder):
        raise InputError(f"{folder} is an ablation; `voxray report {folder}` shows its arms side by side")
    study = read_study(folder)
    found = [(study.run_folders(trial), trial) for trial in study.ranked()[:top]]
    return [(runs[0], _of_the_trial(study, trial)) for runs, trial in found if runs]


def _of_the_trial(study: StudyFiles, trial: Trial) -> Facts:
    """Return a trial's scores, which with several seeds are no run's own."""
    facts: Facts = {}
    for place, objective in enumerate(study.objectives):
        facts[f"{objective.metric} of the trial"] = trial.score(place)
        spread = trial.spread(place)
        if spread is not None:
            facts[f"± sd of {objective.metric}, {len(trial.seeds)} seeds"] = spread
    return facts


def _facts(run: RunFiles, left_out: Sequence[str]) -> Facts:
    facts = {word: run.config[word] for word in WORDS if run.config.get(word) and word not in left_out}
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


def _differing_keys(runs: Mapping[str, RunFiles]) -> list[dict[str, Any]]:
    configs = {
        name: {".".join(path): masked(".".join(path), value) for path, value in leaves(run.config)}
        for name, run in runs.items()
    }
    paths = dict.fromkeys(path for config in configs.values() for path in config)
    return [
        _row(path, configs)
        for path in paths
        if path not in SAME_BY_NATURE and not path.startswith("tags.") and _differs(path, configs)
    ]


def _differs(path: str, configs: Mapping[str, Facts]) -> bool:
    first, *others = (config.get(path) for config in configs.values())
    return any(value != first for value in others)


def _row(what: str, by_run: Mapping[str, Facts]) -> dict[str, Any]:
    return {"what": what, **{name: values.get(what) for name, values in by_run.items()}}
