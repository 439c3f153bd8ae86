"""How each tracker shows a study, and the runs of its trials."""

# W&B annotates its functions in part only.
# pyright: reportUnknownMemberType=false

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from voxray.config.secrets import masked
from voxray.core.run_config import RunConfig
from voxray.data.location import working_folder
from voxray.train.config import MlflowConfig, WandbConfig
from voxray.train.log_tail import Record
from voxray.train.run_folder import RunFolder
from voxray.train.trackers.mlflow import Mlflow
from voxray.train.trackers.tensorboard import TensorBoard
from voxray.train.trackers.tracker import RunInfo, Tracker, TrackerState
from voxray.train.trackers.wandb import Wandb
from voxray.tune.ledger import TrialRow
from voxray.tune.trackers.hparams import write_session

TENSORBOARD = "tensorboard"  # in STUDY: what the trials were drawn as, and their scores


@dataclass
class Outcome:
    """How a trial ended, filled in when it has."""

    metrics: tuple[str, ...]  # of the objectives
    row: TrialRow | None = None

    def scores(self) -> dict[str, float]:
        """Return the objectives' values by metric; none for a trial that failed."""
        scores = self.row.scores if self.row is not None else None
        return dict(zip(self.metrics, scores, strict=True)) if scores else {}

    def facts(self) -> dict[str, Any]:
        """Return what a tracker's run is given at its end: `trial/…` and `score/<metric>`."""
        if self.row is None:
            return {}
        scores = {f"score/{metric}": score for metric, score in self.scores().items()}
        return {"trial/index": self.row.index, "trial/state": self.row.state, **scores}


class Shown(Protocol):
    """One tracker's way to show a study."""

    key: str
    study: Tracker  # followed as a run of its own, before the first trial and after the last

    def trial(self, outcome: Outcome) -> Tracker:
        """Return what shows one run of a trial. Its `start` tells nothing: the study's did."""
        ...


def chosen(config: RunConfig, study: RunFolder, name: str) -> list[Shown]:
    """Return the trackers that `logging` turns on; none of them has been started."""
    logging = config.logging
    found: list[Shown] = []
    if logging.tensorboard:
        found.append(InTensorBoard(study))
    if logging.wandb.enabled:
        found.append(InWandb(logging.wandb, name))
    if logging.mlflow.enabled:
        found.append(InMlflow(logging.mlflow, working_folder(config.storage.path), study))
    return found


@dataclass
class Place:
    """A study in a tracker that has no run for it: only a line that tells where to look."""

    key: str
    name: str
    line: str
    patience_s: float = 1.0

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Return the line."""
        return self.line

    def record(self, record: Record) -> None:
        """A study logs nothing itself."""

    def flush(self) -> None:
        """A study logs nothing itself."""

    def finish(self, status: str) -> None:
        """Nothing was begun."""


# --- TensorBoard
class InTensorBoard:
    """Each run's scalars in its folder; in STUDY/tensorboard the table of what was drawn and reached."""

    key = TensorBoard.key

    def __init__(self, study: RunFolder) -> None:
        self._folder = study.path / TENSORBOARD
        self.study: Tracker = Place(
            self.key, TensorBoard.name, f"{TensorBoard.name}: tensorboard --logdir {study.path}"
        )

    def trial(self, outcome: Outcome) -> Tracker:
        """Return what writes a run's events, and its row of the table when the trial has ended."""
        return TrialTensorBoard(self._folder, outcome)


class TrialTensorBoard(TensorBoard):
    """A run's events; at the end its row of the study's table."""

    def __init__(self, table: Path, outcome: Outcome) -> None:
        """`table` is the folder of the study's table."""
        super().__init__()
        self._table, self._outcome = table, outcome

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Open an event file."""
        super().start(info, state)
        return ""

    def finish(self, status: str) -> None:
        """Close the event file and write the row."""
        super().finish(status)
        row = self._outcome.row
        if row is not None:
            folder = self._table / self._info.run.path.name
            values = masked("", row.values)
            write_session(
                folder, f"{row.index:04d}", values, self._outcome.scores(), row.step or 0, row.state
            )


# --- W&B
class InWandb:
    """A W&B run per run of a trial, in the group of the study."""

    key = Wandb.key

    def __init__(self, config: WandbConfig, name: str) -> None:
        self._config = config
        where = f"{Wandb.name}: project {config.project}, group {config.group or name}"
        self.study: Tracker = Place(self.key, Wandb.name, where)

    def trial(self, outcome: Outcome) -> Tracker:
        """Return what shows a run, with the trial's scores in its summary."""
        return TrialWandb(self._config, outcome)


class TrialWandb(Wandb):
    """A run in the study's group; at the end the trial's scores are in its summary."""

    def __init__(self, config: WandbConfig, outcome: Outcome) -> None:
        """Nothing is contacted before `start`."""
        super().__init__(config)
        self._outcome = outcome

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Begin the run, online or in files; tell how files are sent, in one line for all trials."""
        super().start(info, state)
        if not self.why_offline:
            return ""
        files = info.run.path.parent / "*" / "wandb" / "offline-run-*"
        return f"{self.name}, {self.why_offline}: send the trials later by `wandb sync {files}`"

    def finish(self, status: str) -> None:
        """Say how the trial ended, and end the run."""
        assert self._run is not None
        if facts := self._outcome.facts():
            self._run.summary.update(facts)
        super().finish(status)


# --- MLflow
class InMlflow:
    """A parent run for the study, and a nested run per run of a trial."""

    key = Mlflow.key

    def __init__(self, config: MlflowConfig, storage: Path, study: RunFolder) -> None:
        self._config, self._storage, self._run = config, storage, study
        self.study: Tracker = Mlflow(config, storage)

    def trial(self, outcome: Outcome) -> Tracker:
        """Return what shows a run below the study's."""
        return TrialMlflow(self._config, self._storage, self._run, outcome)


class TrialMlflow(Mlflow):
    """A run nested in the study's; at the end the trial's scores are among its metrics."""

    def __init__(self, config: MlflowConfig, storage: Path, study: RunFolder, outcome: Outcome) -> None:
        """Nothing is contacted before `start`."""
        super().__init__(config, storage)
        self._study, self._outcome = study, outcome

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Begin the run or go on with it. Raises RuntimeError while the study has no run yet."""
        parent = TrackerState(self._study, self.key)
        if not parent.id or parent.place != self.tracking_uri:
            raise RuntimeError("the study's own run could not be begun")
        self._parent = parent.id
        super().start(info, state)
        return ""

    def tags(self, info: RunInfo) -> dict[str, str]:
        """Return a run's tags, with the study's run as its parent."""
        return {**super().tags(info), "mlflow.parentRunId": self._parent}

    def finish(self, status: str) -> None:
        """Say how the trial ended, and end the run."""
        row = self._outcome.row
        if row is not None:
            now_ms = int(time.time() * 1000)
            for name, value in self._outcome.facts().items():
                if isinstance(value, float):
                    self._client.log_metric(self._run_id, name, value, now_ms, row.step or 0)
                else:
                    self._client.set_tag(self._run_id, f"voxray.{name.replace('/', '.')}", str(value))
        super().finish(status)
