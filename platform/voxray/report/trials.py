"""Reads a study's folder: what was declared (`study.json`) and what Optuna's journal says of each trial."""

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from voxray.config.errors import InputError
from voxray.report.read import read_json

if TYPE_CHECKING:
    import optuna

# The share of best trials whose values PED-ANOVA compares with all: a quarter, as studies here are short.
TARGET_QUANTILE = 0.25


@dataclass(frozen=True)
class Trial:
    """One trial of the journal. `is_done` is False for one that runs, or was cut short and runs again."""

    index: int
    state: str
    value: float | None
    values: dict[str, Any]
    seconds: float | None
    reason: str
    is_done: bool


@dataclass(frozen=True)
class StudyFiles:
    """Everything that a study's folder tells; trials by index."""

    folder: Path
    space: dict[str, Any]
    config: dict[str, Any]
    experiment: str
    maximize: bool
    trials: list[Trial]
    study: "optuna.Study"

    @property
    def search(self) -> dict[str, Any]:
        """The space file's `search` block."""
        return self.space.get("search") or {}

    @property
    def distributions(self) -> dict[str, Any]:
        """Dotted path → how its value is drawn, as the space file declares it."""
        return self.search.get("space") or {}

    @property
    def num_declared(self) -> int | None:
        """Trials that the space file asks for."""
        return self.search.get("trials")

    @property
    def metric(self) -> str:
        """The metric that the search looks at."""
        return str((self.space.get("objective") or {}).get("metric", "value"))

    @property
    def paths(self) -> list[str]:
        """The dotted paths that vary, in the space file's order."""
        found = dict.fromkeys(path for trial in self.trials for path in trial.values)
        return [
            *(path for path in self.distributions if path in found),
            *(p for p in found if p not in self.distributions),
        ]

    @property
    def complete(self) -> list[Trial]:
        """Trials that ended by themselves with a number."""
        return [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best value; the first of equal ones."""
        sign = -1 if self.maximize else 1
        return min(self.complete, key=lambda trial: sign * (trial.value or 0.0), default=None)


def read_study(folder: Path) -> StudyFiles:
    """Read a study's folder. Raises InputError for a file that is missing or broken."""
    saved = read_json(folder / "study.json")
    for key in ("space", "config"):
        if not isinstance(saved.get(key), dict):
            raise InputError(
                f"{folder / 'study.json'} has no map '{key}'; it is not what `voxray tune` writes"
            )
    study = _load_journal(folder / "journal.log")
    distributions = (saved["space"].get("search") or {}).get("space") or {}
    trials = [_trial(frozen, distributions) for frozen in study.get_trials(deepcopy=False)]
    return StudyFiles(
        folder=folder,
        space=saved["space"],
        config=saved["config"],
        experiment=str(saved.get("experiment", "")),
        maximize=study.direction.name == "MAXIMIZE",
        trials=sorted(trials, key=lambda trial: (trial.index, trial.is_done)),
        study=study,
    )


def importances(study: StudyFiles) -> dict[str, float] | None:
    """Return each value's importance by PED-ANOVA, shares that sum to 1, largest first; None where undefined.

    It asks which values set the best quarter of the complete trials apart (arXiv:2304.10255).
    """
    import optuna

    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study.study, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    if not total > 0 or not math.isfinite(total):
        return None
    return {path: value / total for path, value in sorted(found.items(), key=lambda item: -item[1])}


def _load_journal(journal: Path) -> "optuna.Study":
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    if not journal.is_file():
        raise InputError(f"{journal} is missing; the folder is not a whole study of voxray")
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{journal} cannot be read as an Optuna journal: {error or 'no study in it'}"
        ) from error


def _trial(frozen: "optuna.trial.FrozenTrial", distributions: dict[str, Any]) -> Trial:
    state = frozen.state.name.lower()
    reason = str(frozen.user_attrs.get("reason", ""))
    return Trial(
        index=int(frozen.user_attrs.get("index", frozen.number)),
        state=state,
        value=frozen.value if frozen.values is not None else None,
        values={path: _drawn(param, distributions.get(path)) for path, param in frozen.params.items()},
        seconds=frozen.duration.total_seconds() if frozen.duration else None,
        reason=reason,
        is_done=state in ("complete", "pruned") or (state == "fail" and bool(reason)),
    )


def _drawn(param: Any, drawn: Any) -> Any:
    """Return the experiment's value: of a normal distribution the journal holds the quantile."""
    normal = drawn.get("normal") if isinstance(drawn, dict) else None
    return NormalDist(*normal).inv_cdf(param) if normal else param
