"""Reads a study's folder: what was declared (`study.json`) and what Optuna's journal says of each trial."""

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from voxray.config.errors import InputError
from voxray.report.read import read_json
from voxray.report.study.trials import (
    ATTRIBUTE_OF_A_STEP,
    Exploit,
    Objective,
    Point,
    Trial,
    non_dominated,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class StudyFiles:
    """Everything that a study's folder tells; trials by index."""

    folder: Path
    space: dict[str, Any]
    config: dict[str, Any]
    experiment: str
    objectives: tuple[Objective, ...]
    trials: list[Trial]  # of this study
    imported: list[Trial]  # learned from, of an earlier study
    num_rejected: int  # draws that a constraint refused before they became trials
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
    def has_several(self) -> bool:
        """Whether there are several objectives."""
        return len(self.objectives) > 1

    @property
    def num_declared(self) -> int | None:
        """Trials that the space file asks for; None where only time is limited."""
        return self.search.get("trials")

    @cached_property
    def paths(self) -> list[str]:
        """The dotted paths that vary, in the space file's order."""
        found = dict.fromkeys(path for trial in self.trials for path in trial.values)
        return [
            *(path for path in self.distributions if path in found),
            *(p for p in found if p not in self.distributions),
        ]

    @cached_property
    def done(self) -> list[Trial]:
        """Trials that will not run again."""
        return [trial for trial in self.trials if trial.is_done]

    @cached_property
    def complete(self) -> list[Trial]:
        """Trials that ended by themselves with numbers, whether their constraints hold or not."""
        return [trial for trial in self.trials if trial.state == "complete" and trial.scores]

    @cached_property
    def feasible(self) -> list[Trial]:
        """The complete trials whose constraints hold."""
        return [trial for trial in self.complete if trial.is_feasible]

    @cached_property
    def best(self) -> Trial | None:
        """The feasible trial with the best score, the first of equal ones; None with several objectives."""
        if self.has_several:
            return None
        sign = self.objectives[0].sign
        return min(self.feasible, key=lambda trial: sign * (trial.value or 0.0), default=None)

    @cached_property
    def front(self) -> list[Trial]:
        """The best trials: one, or with several objectives the feasible ones that no other one beats."""
        if self.has_several:
            return non_dominated(self.feasible, self.objectives)
        return [self.best] if self.best else []

    def is_top(self, trial: Trial) -> bool:
        """Tell whether a trial is the best one, or on the front."""
        return any(trial is top for top in self.front)

    def ranked(self) -> list[Trial]:
        """Return the feasible complete trials, the front first, then by the first objective."""
        sign = self.objectives[0].sign
        return sorted(self.feasible, key=lambda trial: (not self.is_top(trial), sign * (trial.value or 0.0)))

    def run_folders(self, trial: Trial) -> list[Path]:
        """Return the RUN folders of a trial that exist: one, or one per seed (`0003-seed1`)."""
        name, trials = f"{trial.index:04d}", self.folder / "trials"
        found = [trials / name, *sorted(trials.glob(f"{name}-seed*"))]
        return [folder for folder in found if (folder / "config.json").is_file()]


def read_study(folder: Path) -> StudyFiles:
    """Read a study's folder. Raises InputError for a file that is missing or broken."""
    saved = read_json(folder / "study.json")
    for key in ("space", "config"):
        if not isinstance(saved.get(key), dict):
            raise InputError(
                f"{folder / 'study.json'} has no map '{key}'; it is not what `voxray tune` writes"
            )
    study = _load_journal(folder / "journal.log")
    objectives = _objectives(saved["space"], study, folder)
    distributions = (saved["space"].get("search") or {}).get("space") or {}
    try:
        trials = [
            _trial(frozen, distributions)
            for frozen in study.get_trials(deepcopy=False)
            if frozen.state.name != "WAITING" and "rejected" not in frozen.user_attrs
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'journal.log'}: a trial's attributes are not voxray's: {error!r}"
        ) from error
    return StudyFiles(
        folder=folder,
        space=saved["space"],
        config=saved["config"],
        experiment=str(saved.get("experiment", "")),
        objectives=objectives,
        trials=sorted(
            (trial for trial in trials if not trial.from_study),
            key=lambda trial: (trial.index, trial.is_done),
        ),
        imported=[trial for trial in trials if trial.from_study],
        num_rejected=sum("rejected" in frozen.user_attrs for frozen in study.get_trials(deepcopy=False)),
        study=study,
    )


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


def _objectives(space: dict[str, Any], study: "optuna.Study", folder: Path) -> tuple[Objective, ...]:
    """Return the metrics that study.json names, with the directions of the journal."""
    declared = space.get("objective") or {}
    several = declared if isinstance(declared, list) else [declared]
    if len(several) != len(study.directions):
        raise InputError(
            f"{folder}: study.json names {len(several)} objectives and journal.log {len(study.directions)}; "
            "they are of two studies, restore one of the files"
        )
    return tuple(
        Objective(str(one.get("metric", "value")), direction.name == "MAXIMIZE")
        for one, direction in zip(several, study.directions, strict=True)
    )


def _trial(frozen: "FrozenTrial", distributions: dict[str, Any]) -> Trial:
    attributes, state = frozen.user_attrs, frozen.state.name.lower()
    reason, curve = str(attributes.get("reason", "")), _curve(frozen)
    return Trial(
        index=int(attributes.get("index", frozen.number)),
        number=frozen.number,
        state=state,
        scores=_scores(frozen, curve),
        values={path: _drawn(param, distributions.get(path)) for path, param in frozen.params.items()},
        reason=reason,
        is_done=state in ("complete", "pruned") or (state == "fail" and bool(reason)),
        start=frozen.datetime_start,
        end=frozen.datetime_complete,
        step=attributes.get("best_step"),
        seeds=tuple(_tuple(seed) for seed in attributes.get("seeds") or ()),
        violated=tuple(name for name, excess in frozen.constraints.items() if excess > 0),
        curve=curve,
        exploits=tuple(Exploit.read(saved) for saved in attributes.get("pbt") or ()),
        from_study=str(attributes.get("from_study", "")),
        gpus=attributes.get("gpus"),
    )


def _scores(frozen: "FrozenTrial", curve: tuple[Point, ...]) -> tuple[float, ...] | None:
    """Return a trial's scores, all finite; those of the last evaluation for a stopped one."""
    found = frozen.values
    if found is None and frozen.state.name == "PRUNED" and curve:
        found = curve[-1].scores
    return _finite(found) if found else None


def _finite(scores: Any) -> tuple[float, ...] | None:
    known = tuple(score for score in scores if score is not None and math.isfinite(score))
    return known if len(known) == len(scores) else None


def _curve(frozen: "FrozenTrial") -> tuple[Point, ...]:
    """Return the evaluations by step: `at/<step>` = [epochs, scores …], or Optuna's intermediate values."""
    points = {step: Point(step, None, (value,)) for step, value in frozen.intermediate_values.items()}
    for key, saved in frozen.user_attrs.items():
        if key.startswith(ATTRIBUTE_OF_A_STEP):
            step = int(key.removeprefix(ATTRIBUTE_OF_A_STEP))
            points[step] = Point(step, saved[0], tuple(saved[1:]))
    return tuple(points[step] for step in sorted(points))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _drawn(param: Any, drawn: Any) -> Any:
    """Return the experiment's value: of a normal distribution the journal holds the quantile."""
    normal = drawn.get("normal") if isinstance(drawn, dict) else None
    return NormalDist(*normal).inv_cdf(param) if normal else param
