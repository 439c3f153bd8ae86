"""How much each value mattered for an objective: PED-ANOVA, and fANOVA beside it, both by Optuna."""

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxray.report.study.read import StudyFiles
from voxray.report.study.trials import Trial

if TYPE_CHECKING:
    import optuna

# The share of best trials whose values PED-ANOVA compares with all: a quarter, as studies here are short.
TARGET_QUANTILE = 0.25
# Optuna's documentation asks for 5 trials in the best quarter; below 2 there is nothing to compare.
MIN_TRIALS, TRIALS_FOR_STEADINESS = 6, 20


@dataclass(frozen=True)
class Importance:
    """Shares that sum to 1, by dotted path, the largest first.

    `left_out` are keys that too few trials drew to say something about them. fANOVA's forest needs a number
    for every key, so it sees only those that all trials drew.
    """

    ped_anova: dict[str, float]
    fanova: dict[str, float]
    left_out: tuple[str, ...]
    num_trials: int

    @property
    def is_steady(self) -> bool:
        """Whether there are enough trials to trust the order."""
        return self.num_trials >= TRIALS_FOR_STEADINESS


def importance(study: StudyFiles, objective: int) -> Importance | None:
    """Return what mattered for one objective over the complete trials; None where it is undefined.

    PED-ANOVA asks which values set the best quarter of the trials apart (arXiv:2304.10255); of a key that
    some trials drew, among these (arXiv:2601.20800), from 20 on: three gave one the share 0.75 by chance.
    fANOVA asks how much of the variance over all trials a key explains alone (Hutter et al., ICML 2014).
    """
    import optuna

    trials = study.complete
    if len({trial.scores[objective] for trial in trials if trial.scores}) < 2:
        return None
    single = _single(study, trials, objective)
    drawn = [frozen.distributions for frozen in single.get_trials(deepcopy=False)]
    num_drawn = Counter(path for each in drawn for path in each)
    shared = [path for path in study.paths if all(each.get(path) == drawn[0].get(path, 0) for each in drawn)]
    known = [path for path in study.paths if path in shared or num_drawn[path] >= TRIALS_FOR_STEADINESS]
    if not known:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ped_anova = _shares(
            single, optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE), known
        )
        fanova = _shares(single, optuna.importance.FanovaImportanceEvaluator(seed=0), shared)
    if ped_anova is None:
        return None
    left_out = tuple(path for path in study.paths if path not in known)
    return Importance(ped_anova, fanova or {}, left_out, len(trials))


def _single(study: StudyFiles, trials: list[Trial], objective: int) -> "optuna.Study":
    """Return a study in memory of these trials, with one of the objectives as its value."""
    import optuna

    own = {trial.number for trial in trials}
    single = optuna.create_study(direction=study.study.directions[objective])
    single.add_trials(
        optuna.trial.create_trial(
            value=frozen.values[objective], params=frozen.params, distributions=frozen.distributions
        )
        for frozen in study.study.get_trials(deepcopy=False)
        if frozen.number in own
    )
    return single


def _shares(
    study: "optuna.Study", evaluator: "optuna.importance.BaseImportanceEvaluator", paths: list[str]
) -> dict[str, float] | None:
    import optuna

    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=paths, normalize=False)
    total = math.fsum(found.values())
    if not total > 0 or not math.isfinite(total):
        return None
    return {path: value / total for path, value in sorted(found.items(), key=lambda item: -item[1])}
