"""`TrialTrackers`: what a search's driver tells its trackers, one thread per tracker for all trials.

Each trial's log is its queue, as in training: a tracker that is slow, down or wrong holds no trial up. What
could not be sent when a trial ended is tried once more at the search's end; then the same command sends it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from voxray.config.errors import VoxrayError
from voxray.core.registry import config_class
from voxray.core.run_config import RunConfig
from voxray.train.run_folder import RunFolder
from voxray.train.trackers.fan_out import Feed, Lane, Tell
from voxray.train.trackers.tracker import RunInfo, run_info
from voxray.tune.job import Job, Run
from voxray.tune.ledger import TrialRow
from voxray.tune.plan import Plan
from voxray.tune.trackers.shown import Outcome, Shown, chosen

PATIENCE_S = 30.0  # of the search's end, for all trials together
CATCH_UP_S = 600.0  # where nothing but the trackers is waited for
POLL_S = 0.05
DESCRIPTION = "study.json"  # its `started` tells two studies of one folder apart
JOB_TYPE = "trial"
STATUS = {"complete": "finished", "pruned": "finished", "fail": "failed"}


class TrialTrackers:
    """The trackers of one search or ablation; without any, nothing is done.

    As a context it ends them: trials that have not ended by then were cut short.
    """

    def __init__(
        self,
        config: RunConfig,
        study: Path,
        name: str,
        metrics: Sequence[str],
        tell: Tell,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Take those that the experiment's `logging` turns on; the first trial begins them.

        `study` is the STUDY folder, `name` the study's, `metrics` are those of its objectives; at the end
        `patience_s` is waited for what is not sent yet.
        """
        self._run = RunFolder(study.resolve())
        self._name, self._metrics = name, tuple(metrics)
        self._started, self._patience_s = _started(study), patience_s
        self._trials: dict[int, Outcome] = {}
        once = _Once(tell)
        self._trackers = [
            _AtTracker(shown, self._about_study(config), once) for shown in chosen(config, self._run, name)
        ]

    @classmethod
    def of(cls, plan: Plan, tell: Tell, patience_s: float = PATIENCE_S) -> Self:
        """Return the trackers of a plan's study."""
        metrics = [objective.metric for objective in plan.space.config.objectives]
        return cls(plan.base.config, plan.folder, plan.name, metrics, tell, patience_s)

    def __enter__(self) -> Self:
        """Return the trackers."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End them."""
        self.finish("failed" if kind is not None else "interrupted" if self._trials else "finished")

    def __getstate__(self) -> dict[str, object]:
        """Return nothing: Tune pickles all that a searcher reaches, for a restore that never comes."""
        return {}

    def begin(self, job: Job, name: str = "") -> None:
        """Follow a trial's runs, each as soon as it logs; one that is followed already (PBT) goes on.

        A run is shown under `name`, or its config's name, with its seed where the trial has several.
        """
        if not self._trackers or job.index in self._trials:
            return
        outcome = self._trials[job.index] = Outcome(self._metrics)
        for run in job.runs:
            info = self._about(run, name, several=len(job.runs) > 1)
            for tracker in self._trackers:
                tracker.follow(job.index, info, outcome)

    def ended(self, row: TrialRow) -> None:
        """Let what is left of a trial be sent, and its runs be ended."""
        outcome = self._trials.pop(row.index, None)
        if outcome is not None:
            outcome.row = row
            for tracker in self._trackers:
                tracker.stop(row.index, STATUS[row.state])

    def catch_up(
        self,
        rows: Iterable[TrialRow],
        folders: Callable[[int], Sequence[Path]],
        name: Callable[[int], str] = lambda _: "",
    ) -> None:
        """Send what an earlier command could not of trials that ended; `folders` gives a trial's runs."""
        for row in rows if self._trackers else ():
            runs = [RunFolder(path.resolve()) for path in folders(row.index)]
            for run in runs:
                behind = [tracker for tracker in self._trackers if tracker.is_behind(run)]
                config = _config(run) if behind else None
                if config is not None:
                    info = self._about(Run(run.path, config), name(row.index), several=len(runs) > 1)
                    for tracker in behind:
                        tracker.follow(row.index, info, Outcome(self._metrics, row))
            for tracker in self._trackers:
                tracker.stop(row.index, STATUS[row.state])

    def finish(self, status: str) -> None:
        """End all: `finished`, `failed` or `interrupted`. Waits, within limits, for what is not sent yet."""
        begun = [tracker for tracker in self._trackers if tracker.is_begun]
        deadline = time.monotonic() + self._patience_s
        for tracker in begun:
            tracker.finish_trials(status, self._patience_s)
        for tracker in begun:
            tracker.wait(deadline)
        for tracker in begun:
            tracker.finish_study(status)
        self._trackers = []

    def _about(self, run: Run, name: str, several: bool) -> RunInfo:
        info = run_info(RunFolder(run.path), run.config)
        identity = f"{self._started} {info.run.path}"
        key = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        seed = f"-seed{run.config.training.seed}" if several else ""
        shown_as = f"{name or run.config.run_name}{seed}"
        return replace(info, name=shown_as, key=key, group=self._name, job_type=JOB_TYPE)

    def _about_study(self, config: RunConfig) -> RunInfo:
        return replace(run_info(self._run, config), name=self._name, experiment=self._name)


@dataclass(frozen=True)
class _Followed:
    """One run of a trial, at one tracker."""

    index: int
    info: RunInfo
    outcome: Outcome
    feed: Feed


class _AtTracker:
    """One tracker: its thread, the study and the trials that it is given."""

    def __init__(self, shown: Shown, study: RunInfo, tell: Tell) -> None:
        self._shown, self._tell = shown, tell
        self._study = Feed(shown.study, study, tell)
        self._lane: Lane | None = None
        self._followed: list[_Followed] = []
        self._unsent: list[_Followed] = []
        self._status: dict[int, str] = {}

    @property
    def is_begun(self) -> bool:
        """Whether it was given a trial."""
        return self._lane is not None

    def is_behind(self, run: RunFolder) -> bool:
        """Whether a run that has ended is not all there."""
        return Feed.is_log_ahead(run, self._shown.key)

    def follow(self, index: int, info: RunInfo, outcome: Outcome) -> None:
        if self._lane is None:
            self._lane = Lane(self._study.name)
            self._lane.add(self._study)
        self._sort_out()
        feed = Feed(self._shown.trial(outcome), info, self._tell, of_many=True)
        self._followed.append(_Followed(index, info, outcome, feed))
        self._lane.add(feed)

    def stop(self, index: int, status: str, patience_s: float = float("inf")) -> None:
        """End a trial's runs in their next turns, however long the thread is busy with others."""
        self._status[index] = status
        for one in self._followed:
            if one.index == index:
                one.feed.stop(status, patience_s)
        if self._lane is not None:
            self._lane.wake()

    def _sort_out(self) -> None:
        """Let go of what has ended; remember what was not sent."""
        done = [one for one in self._followed if one.feed.is_done]
        self._unsent += [one for one in done if not one.feed.is_whole]
        self._followed = [one for one in self._followed if not one.feed.is_done]

    def finish_trials(self, status: str, patience_s: float) -> None:
        """End what still runs, and try again what could not be sent."""
        self._sort_out()
        again, self._unsent = self._unsent, []
        for one in again:
            self.follow(one.index, one.info, one.outcome)
        for index in {one.index for one in self._followed}:
            self.stop(index, self._status.get(index, status), patience_s)

    def wait(self, deadline: float) -> None:
        """Wait for the trials until the deadline; tell how many are not whole there."""
        while time.monotonic() < deadline and not all(one.feed.is_done for one in self._followed):
            time.sleep(POLL_S)
        self._sort_out()
        if left := {one.index for one in (*self._followed, *self._unsent)}:
            self._tell(
                f"{self._study.name}: {len(left)} {'trial is' if len(left) == 1 else 'trials are'} not whole "
                "there; the same command sends the rest"
            )

    def finish_study(self, status: str) -> None:
        assert self._lane is not None
        self._study.stop(status, 0.0)
        self._lane.close()
        self._study.wait()


class _Once:
    """Tells each line once: what is true of one trial's run is mostly true of all."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


def _config(run: RunFolder) -> RunConfig | None:
    """Return the config that a run was trained with; None where this version cannot read it."""
    try:
        values = run.config()
        return config_class(values["task"]).model_validate(values)
    except (VoxrayError, ValueError, KeyError):
        return None


def _started(study: Path) -> str:
    try:
        return str(json.loads((study / DESCRIPTION).read_text())["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
