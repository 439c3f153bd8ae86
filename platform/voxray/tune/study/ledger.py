"""`StudyLedger`: an Optuna study on a journal file, the only record of which trials of a search are done.

A logical trial has an index, 0, 1 …, kept as the user attribute `index`. One that was cut short runs again
under its index, as a new Optuna trial with the same parameters. An index is done when one of its trials is
COMPLETE or PRUNED, or is FAIL with a `reason`: it crashed, and the same parameters would crash again. FAIL
without a reason was cut short: by Ctrl-C, or left RUNNING by a driver that was killed. Trials without an
index were rejected by a constraint before they started (FAIL, `rejected`), or come from an earlier study
(`from_study`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxray.config.errors import RunError
from voxray.train.run_folder import RunFolder, of_last_stage
from voxray.tune.config import ObjectiveConfig, SearchConfig
from voxray.tune.job import RUN, Job
from voxray.tune.ledger import Suggestion, TrialRow
from voxray.tune.space.constraints import Constraint
from voxray.tune.space.draw import Space
from voxray.tune.study.journal import begin_journal
from voxray.tune.study.pareto import non_dominated
from voxray.tune.study.samplers import sampler_of_trial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

AT = "at/"  # + step → [epochs, score of each objective]
MOST_ATTEMPTS = 200  # of drawing values that the constraints allow
EVALUATIONS = ("epoch", "validation")  # kinds of a run's records
Record = Mapping[str, Any]


@dataclass
class _Running:
    """A trial that runs: Optuna's, and its evaluations by run and step."""

    trial: "Trial"
    known: dict[int, float]  # step → the first objective's value, of before it was cut
    runs: dict[int, dict[int, Record]] = field(default_factory=dict[int, dict[int, Record]])


@dataclass(frozen=True)
class StudyRules:
    """What a ledger must know of a search beyond its trials."""

    search: SearchConfig
    objectives: tuple[ObjectiveConfig, ...]
    constraints: tuple[Constraint, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the experiment's values by dotted path
    points: tuple[Mapping[str, Any], ...] = ()  # Optuna's parameters of the first trials


class StudyLedger:
    """A study's folder, open for asking and telling, in one process: the caller holds the folder's lock."""

    def __init__(self, folder: Path, rules: StudyRules) -> None:
        """Open the journal in `folder`, or begin it; trials that a killed driver left RUNNING become FAIL."""
        self.rules, self.objectives = rules, rules.objectives
        self.space = Space(rules.search.space)
        self.num_gpus = 0.0  # that a trial holds
        self.study = begin_journal(folder, rules.objectives)
        self.running: dict[int, _Running] = {}
        self._cut_short: dict[int, FrozenTrial] = {}
        self._is_curve_kept = len(self.objectives) > 1 or rules.search.scheduler.name != "none"
        self._all = self.space.combinations() if rules.search.sampler.name == "brute_force" else []
        for trial in self._trials("RUNNING", "WAITING"):
            self._tell_fail(trial.number)
        for trial in self._trials("FAIL"):
            if "index" in trial.user_attrs:
                self._cut_short[trial.user_attrs["index"]] = trial

    # --- what is left
    @property
    def num_trials(self) -> int | None:
        """How many trials the study has in the end; None: a budget of time ends it."""
        declared = self.rules.search.trials
        return min(declared or len(self._all), len(self._all)) if self._all else declared

    def remaining(self) -> list[int]:
        """Return the indices that are neither done nor running, in order; where time alone ends the search,
        those that were cut short and the next one.
        """
        taken = {trial.user_attrs["index"] for trial in self._done()} | set(self.running)
        if self.is_spent():
            return []
        num = self.num_trials
        most = num if num is not None else max([*taken, *self._cut_short, -1]) + 2
        return [index for index in range(most) if index not in taken]

    def is_spent(self) -> bool:
        """Whether the budget in seconds or GPU-hours is used up."""
        search = self.rules.search
        return (search.seconds is not None and self.seconds() >= search.seconds) or (
            search.gpu_hours is not None and self.gpu_hours() >= search.gpu_hours
        )

    def seconds(self) -> float:
        """Return for how long the study was searched: the time in which at least one trial ran."""
        total, end = 0.0, -math.inf
        for first, last, _ in sorted(self._spans()):
            total += max(0.0, last - max(first, end))
            end = max(end, last)
        return total

    def gpu_hours(self) -> float:
        """Return for how long the trials have held GPUs, times their number."""
        return sum((last - first) * gpus for first, last, gpus in self._spans()) / 3600

    def _spans(self) -> list[tuple[float, float, float]]:
        """Return when each trial that is done, or runs, began and ended, in seconds, and its GPUs."""
        now = datetime.now()
        running = {running.trial.number for running in self.running.values()}
        done = {trial.number for trial in self._done()}
        return [
            (
                trial.datetime_start.timestamp(),
                (trial.datetime_complete or now).timestamp(),
                float(trial.user_attrs.get("gpus", 0.0)),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if trial.number in running | done and trial.datetime_start
        ]

    # --- asking and telling
    def ask(self, index: int) -> Suggestion:
        """Begin trial `index`: its own values again if it was cut short, else a point that was given, else
        what the sampler suggests; values that a constraint refuses are drawn again.

        Raises RunError when the constraints refuse everything that is drawn.
        """
        before = self._cut_short.get(index)
        fixed = dict(before.params) if before else self._given(index)
        refused = ""
        for attempt in range(MOST_ATTEMPTS):
            self.study.sampler = sampler_of_trial(self.rules.search.sampler, index, attempt, fixed)
            trial = self.study.ask()
            values = self.space.draw(trial)
            refused = "" if before else self._refused(values)
            if not refused:
                return self._begin(index, trial, values, before)
            trial.set_user_attr("rejected", refused)
            self._tell_fail(trial.number)
        raise RunError(
            f"trial {index}: the constraints refused {MOST_ATTEMPTS} draws, the last by '{refused}'; "
            "narrow search.space to what they allow"
        )

    def _refused(self, values: Mapping[str, Any]) -> str:
        """Return the constraint of keys that refuses a trial's values, if one does."""
        of_keys = [constraint for constraint in self.rules.constraints if not constraint.metrics]
        refusing = [one.text for one in of_keys if not one.holds(self._value_in(values))]
        return refusing[0] if refusing else ""

    def _begin(
        self, index: int, trial: "Trial", values: dict[str, Any], before: "FrozenTrial | None"
    ) -> Suggestion:
        if self.num_gpus:
            trial.set_user_attr("gpus", self.num_gpus)
        trial.set_user_attr("index", index)  # last: a trial that has an index has all its values
        running = self.running[index] = _Running(trial, dict(before.intermediate_values) if before else {})
        if before:
            self._take_over(running, before)
        return Suggestion(index, self._exploited(before, values) if before else values)

    def _given(self, index: int) -> dict[str, Any]:
        if self._all:
            return self._all[index]
        points = self.rules.points
        return dict(points[index]) if index < len(points) else {}

    def _take_over(self, running: _Running, before: "FrozenTrial") -> None:
        """Note again what a trial had reported when it was cut short."""
        for step, value in before.intermediate_values.items():
            running.trial.report(value, step)
        for name, value in before.user_attrs.items():
            if name.startswith(AT) or name == "pbt":
                running.trial.set_user_attr(name, value)

    def report(self, index: int, record: Record) -> None:
        """Take an evaluation; one without all objectives' numbers, or known already, is left out."""
        scores, step, run = self._scores(record), int(record.get("step", -1)), int(record.get(RUN, 0))
        running = self.running[index]
        seen = running.runs.setdefault(run, {})
        if scores is None or step in seen:
            return
        seen[step] = record
        if run > 0:
            return
        trial = running.trial
        if len(scores) == 1 and math.isfinite(scores[0]) and step not in running.known:
            trial.report(scores[0], step)
        if self._is_curve_kept and all(map(math.isfinite, scores)) and AT + str(step) not in trial.user_attrs:
            trial.set_user_attr(AT + str(step), [float(record.get("epochs", step)), *scores])

    def finish(self, index: int, job: Job | None = None) -> TrialRow:
        """Tell COMPLETE with the scores where the first objective was best in the run's last stage, their
        mean over the seeds; FAIL when it was never a finite number.

        An epoch saved but not heard of before a kill is not trained again; the runs' logs have it.
        """
        from voxray.train.mirror import refresh

        runs = job.runs if job else ()
        first_steps: dict[int, int] = {}
        for number, run in enumerate(runs):
            refresh(run.config.storage.path, run.path)
            evaluations = [r for r in RunFolder(run.path).records() if r["kind"] in EVALUATIONS]
            for record in evaluations:
                self.report(index, {**record, RUN: number})
            first_steps[number] = min((int(r["step"]) for r in of_last_stage(evaluations)), default=0)
        running = self.running[index]
        best = [self._best(running, run, first_steps.get(run, 0)) for run in range(max(1, len(runs)))]
        if any(record is None for record in best):
            return self.crash(index, f"{self.objectives[0].metric} was never a finite number")
        records = [record for record in best if record is not None]
        per_seed = [self._scores(record) or () for record in records]
        trial = running.trial
        missing = self._constrain(trial, records)
        if missing:
            return self.crash(index, f"constraints: {missing} was never reported")
        trial.set_user_attr("best_step", int(records[0]["step"]))
        if len(records) > 1:
            trial.set_user_attr("seeds", [list(scores) for scores in per_seed])
        del self.running[index]
        self.study.tell(trial, [sum(scores) / len(scores) for scores in zip(*per_seed, strict=True)])
        return self._row(self._frozen(trial))

    def crash(self, index: int, reason: str) -> TrialRow:
        """Tell FAIL, for good, with the reason."""
        trial = self.running.pop(index).trial
        trial.set_user_attr("reason", reason)
        self._tell_fail(trial.number)
        return self._row(self._frozen(trial))

    def stop(self, index: int) -> TrialRow:
        """Tell PRUNED: a scheduler stopped the trial. Its value is that of its last evaluation."""
        from optuna.trial import TrialState

        running = self.running.pop(index)
        seen = running.runs.get(0, {})
        if seen:
            self._constrain(running.trial, [seen[max(seen)]])
        self.study.tell(running.trial, state=TrialState.PRUNED)
        return self._row(self._frozen(running.trial))

    def cut_short(self) -> list[int]:
        """Tell FAIL, to be run again, for what still runs (Ctrl-C). Return the indices."""
        indices = sorted(self.running)
        for index in indices:
            trial = self.running.pop(index).trial
            self._tell_fail(trial.number)
            self._cut_short[index] = self._frozen(trial)
        return indices

    # --- what schedulers need
    def curves(self) -> dict[int, list[tuple[float, float, tuple[float, ...]]]]:
        """Return, of every trial that is done, runs or was cut short, by index: (step, epochs, scores) of its
        evaluations in order, as reported.
        """
        found: dict[int, list[tuple[float, float, tuple[float, ...]]]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if "index" in trial.user_attrs:
                found[trial.user_attrs["index"]] = _curve(trial)
        return found

    def note_exploit(self, index: int, exploit: Mapping[str, Any]) -> None:
        """Note that a member of a population goes on from another: epochs, step, from, values."""
        trial = self.running[index].trial
        trial.set_user_attr("pbt", [*trial.user_attrs.get("pbt", []), dict(exploit)])

    def exploits(self) -> dict[int, list[dict[str, Any]]]:
        """Return what was noted by `note_exploit`, by index."""
        trials = self.study.get_trials(deepcopy=False)
        return {t.user_attrs["index"]: t.user_attrs["pbt"] for t in trials if "pbt" in t.user_attrs}

    def values(self, index: int) -> dict[str, Any]:
        """Return the values that a running trial has now."""
        trial = self._frozen(self.running[index].trial)
        return self._exploited(trial, self.space.values(trial.params))

    def allows(self, values: Mapping[str, Any]) -> bool:
        """Return whether the constraints of keys hold."""
        return not self._refused(values)

    def _exploited(self, trial: "FrozenTrial", values: dict[str, Any]) -> dict[str, Any]:
        """Return a trial's values: those that it took over last, else what was drawn."""
        exploits = trial.user_attrs.get("pbt", [])
        return dict(exploits[-1]["values"]) if exploits else values

    # --- results
    def rows(self) -> list[TrialRow]:
        """Return the logical trials that are done, by index."""
        return sorted((self._row(trial) for trial in self._done()), key=lambda row: row.index)

    def best(self) -> TrialRow | None:
        """Return the complete, feasible trial with the best first objective, the first of equals."""
        sign = self.objectives[0].sign
        return min(self._candidates(), key=lambda row: sign * (row.value or 0.0), default=None)

    def front(self) -> list[TrialRow]:
        """Return the complete, feasible trials that no other is better than in every objective."""
        rows = self._candidates()
        signs = [objective.sign for objective in self.objectives]
        costs = [[sign * score for sign, score in zip(signs, row.scores or (), strict=True)] for row in rows]
        return [rows[place] for place in non_dominated(costs)]

    def _candidates(self) -> list[TrialRow]:
        return [row for row in self.rows() if row.state == "complete" and row.is_feasible]

    def _done(self) -> "list[FrozenTrial]":
        own = [trial for trial in self._trials("COMPLETE", "PRUNED", "FAIL") if "index" in trial.user_attrs]
        return [trial for trial in own if trial.state.name != "FAIL" or "reason" in trial.user_attrs]

    def _trials(self, *states: str) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=tuple(TrialState[state] for state in states))

    def _frozen(self, trial: "Trial") -> "FrozenTrial":
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _tell_fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL)

    def _row(self, trial: "FrozenTrial") -> TrialRow:
        scores = tuple(trial.values) if trial.values is not None else None
        curve = _curve(trial) if trial.state.name == "PRUNED" else []
        if scores is None and curve:
            scores = curve[-1][2]
        step = trial.user_attrs.get("best_step", int(curve[-1][0]) if curve else None)
        return TrialRow(
            index=trial.user_attrs["index"],
            state=trial.state.name.lower(),
            scores=scores,
            step=step,
            seconds=trial.duration.total_seconds() if trial.duration else 0.0,
            values=self._exploited(trial, self.space.values(trial.params)),
            reason=trial.user_attrs.get("reason", ""),
            is_feasible=all(excess <= 0 for excess in trial.constraints.values()),
        )

    # --- scores and constraints
    def _scores(self, record: Record) -> tuple[float, ...] | None:
        found = [record.get(objective.metric) for objective in self.objectives]
        numbers = [float(value) for value in found if isinstance(value, int | float)]
        return tuple(numbers) if len(numbers) == len(self.objectives) else None

    def _best(self, running: _Running, run: int, first_step: int) -> Record | None:
        """Return a run's evaluation from `first_step` on, the first with the best first objective."""
        metric, sign = self.objectives[0].metric, self.objectives[0].sign
        seen: dict[int, Record] = dict(running.runs.get(run, {}))
        if run == 0 and len(self.objectives) == 1:
            for step, value in running.known.items():  # what was told first stays
                seen[step] = {**seen.get(step, {"step": step}), metric: value}
        late = [seen[step] for step in sorted(seen) if step >= first_step]
        finite = [record for record in late if math.isfinite(record[metric])]
        return min(finite, key=lambda record: sign * record[metric], default=None)

    def _constrain(self, trial: "Trial", records: Sequence[Record]) -> str:
        """Tell Optuna by how much each constraint of metrics is violated, on the mean of the records; return
        the metric that is missing, if one is.
        """
        of_metrics = [constraint for constraint in self.rules.constraints if constraint.metrics]
        for constraint in of_metrics:
            means: dict[str, float] = {}
            for name in constraint.metrics:
                found = [record[name] for record in records if name in record]
                if len(found) < len(records):
                    return name
                means[name] = sum(found) / len(found)
            excess = constraint.excess(self._value_in(self.space.values(trial.params)), means)
            trial.set_constraint(constraint.text, 1.0 if math.isnan(excess) else excess)
        return ""

    def _value_in(self, values: Mapping[str, Any]) -> Callable[[str], Any]:
        """Return what gives a key's value in a trial: what was drawn, else the experiment's own."""
        return {**self.rules.base, **values}.__getitem__


def _curve(trial: "FrozenTrial") -> list[tuple[float, float, tuple[float, ...]]]:
    """Return (step, epochs, scores) of a trial's evaluations in order."""
    kept = {
        int(name.removeprefix(AT)): (float(value[0]), tuple(map(float, value[1:])))
        for name, value in trial.user_attrs.items()
        if name.startswith(AT)
    }
    for step, value in trial.intermediate_values.items():
        kept.setdefault(step, (math.nan, (value,)))
    return [(float(step), *kept[step]) for step in sorted(kept)]
