"""What Ray Tune sees: trials begin in order; a stopping policy decides on each evaluation, none is paused."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from voxray.train.run_folder import RunFolder
from voxray.tune.config import ObjectiveConfig
from voxray.tune.job import OUTCOME, RUN, Job
from voxray.tune.schedulers.policy import Decision, Result, StoppingPolicy

EVALUATIONS = ("epoch", "validation")  # kinds of a run's records
# Of each trial, by index: (step, epochs, scores) of its evaluations in order, the scores as reported.
Curves = Mapping[int, Sequence[tuple[float, float, Sequence[float]]]]


class Clock:
    """Reads a policy's `Result` from what a trial reports: `unit` (epochs or step) is its time."""

    def __init__(self, unit: str, objectives: Sequence[ObjectiveConfig]) -> None:
        """`unit` is that of the scheduler's config: epochs, or steps."""
        self.unit, self.objectives = unit, objectives

    def read(self, index: int, report: Mapping[str, Any]) -> Result | None:
        """Return the result, or None for a report that is none: how a trial ended, another seed than the
        first, an evaluation without a metric that is looked at.

        The time is the run's own, since Tune's `training_iteration` begins again with each start of a trial.
        """
        time = report.get("epochs" if self.unit == "epochs" else "step")
        scores = [report.get(objective.metric) for objective in self.objectives]
        if OUTCOME in report or report.get(RUN, 0) != 0 or time is None or None in scores:
            return None
        return self._result(index, time, scores)

    def past(self, curves: Curves) -> list[Result]:
        """Return the results that a study remembers, by time, so that they come as they came."""
        results = [
            self._result(index, epochs if self.unit == "epochs" else step, scores)
            for index, curve in curves.items()
            for step, epochs, scores in curve
        ]
        return sorted(results, key=lambda result: (result.time, result.index))

    def _result(self, index: int, time: float, scores: Sequence[Any]) -> Result:
        signed = zip(self.objectives, scores, strict=True)
        return Result(index, float(time), tuple(objective.sign * float(score) for objective, score in signed))


class InOrder(FIFOScheduler):
    """Trials begin in the order they were asked for, each in an actor that is idle or in a new one.

    Ray's own names the first trial that is PENDING at each step, and Tune gives that one any idle actor, also
    where its own is starting, which is then killed. Where trials are shorter than the start of an actor, all
    would run one after the other while actors are started in vain.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Name none: what is PENDING and has no actor yet, Tune starts by itself."""


class StoppingScheduler(InOrder):
    """Asks a policy, and first tells it what the study remembers: a killed search's rungs are not lost."""

    def __init__(self, policy: StoppingPolicy, clock: Clock, curves: Curves) -> None:
        """Tell the policy the past: what it would decide on that is of no use any more."""
        super().__init__()
        self.policy, self.clock = policy, clock
        for result in clock.past(curves):
            policy.decide(result)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the policy what a trial that was cut short had saved and nobody heard of."""
        for record in saved_evaluations(trial):
            if told := self.clock.read(index_of(trial), record):
                self.policy.decide(told)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decide on an evaluation; any other report goes on."""
        told = self.clock.read(index_of(trial), result)
        if told is None or self.policy.decide(told) is Decision.CONTINUE:
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP


def index_of(trial: Trial) -> int:
    """Return the index of a trial in its study."""
    job: Job = trial.config["job"]
    return job.index


def saved_evaluations(trial: Trial) -> list[dict[str, Any]]:
    """Return the evaluations of a trial's first run up to its newest checkpoint, in order: it goes on from
    there and reports none of them again. Empty for a trial that has not begun.
    """
    from voxray.train.checkpoints import adopt, checkpoint

    job: Job = trial.config["job"]
    folder = RunFolder(job.runs[0].path)
    newest = checkpoint.last(folder.checkpoints)
    if newest is None:
        return []
    saved = [record for record in folder.records() if record["kind"] in EVALUATIONS]
    return [record for record in saved if record["step"] <= adopt.step_of(newest)]
