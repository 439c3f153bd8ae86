"""`from_study:`: the complete trials of an earlier study, told to a new one, which learns from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from voxray.config.errors import InputError
from voxray.config.resolve import leaves
from voxray.tune.config import ObjectiveConfig
from voxray.tune.space.config import Distribution
from voxray.tune.space.draw import Space, optuna_distribution
from voxray.tune.study.journal import read_journal
from voxray.tune.study.ledger import StudyLedger

FROM = "from_study"


@dataclass(frozen=True)
class EarlierStudy:
    """A study's folder, read: what it looked at, how it drew, and what its experiment said of other keys."""

    folder: Path
    objectives: tuple[ObjectiveConfig, ...]
    space: Space
    base: Mapping[str, Any]


def read_earlier(folder: Path, objectives: tuple[ObjectiveConfig, ...]) -> EarlierStudy:
    """Read what an earlier study was. Raises InputError where it is none, or looked at other objectives."""
    file = folder / "study.json"
    try:
        saved = json.loads(file.read_text())
        declared: Any = saved["space"]["objective"]
        each = cast("list[Any]", declared if isinstance(declared, list) else [declared])
        drawn = saved["space"]["search"]["space"]
        base = {".".join(path): value for path, value in leaves(saved["config"])}
        found = tuple(ObjectiveConfig.model_validate(one) for one in each)
        space = Space({path: Distribution.model_validate(entry) for path, entry in drawn.items()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"from_study: {folder} is no study that `voxray tune` wrote ({error})") from error
    if found != objectives:
        theirs = ", ".join(f"{one.metric} ({one.mode})" for one in found)
        raise InputError(f"from_study: {folder} looked at {theirs}; this space looks at something else")
    return EarlierStudy(folder, found, space, base)


def learn_from(ledger: StudyLedger, earlier: EarlierStudy) -> tuple[int, int]:
    """Add the earlier study's complete trials to a new one; return how many, and how many do not fit.

    A key that the earlier study did not draw had its experiment's value. A study that learnt already is left
    as it is.
    """
    import optuna

    trials = ledger.study.get_trials(deepcopy=False)
    if any(FROM in trial.user_attrs or "index" in trial.user_attrs for trial in trials):
        return 0, 0
    added = left_out = 0
    for trial in read_journal(earlier.folder).get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        values = {**earlier.base, **earlier.space.values(trial.params)}
        params = _fitting(ledger.space, values)
        if params is None:
            left_out += 1
            continue
        distributions = {path: optuna_distribution(ledger.space.entries[path]) for path in params}
        told = optuna.trial.create_trial(
            values=trial.values,
            params=params,
            distributions={path: found for path, found in distributions.items() if found is not None},
            user_attrs={FROM: f"{earlier.folder.name}/{trial.user_attrs.get('index', trial.number)}"},
        )
        ledger.study.add_trial(told)
        added += 1
    return added, left_out


def _fitting(space: Space, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what Optuna would have drawn for these values, None where the space never draws them."""
    wanted = {path: values[path] for path in space.active(values) if path in values}
    if len(wanted) < len(space.active(values)):
        return None
    try:
        return space.params(wanted)
    except InputError:
        return None
