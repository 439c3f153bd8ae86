"""What a tracker is (`Tracker`), what it is told of a run (`RunInfo`) and what it keeps (`TrackerState`)."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from voxray.config.secrets import flattened, masked
from voxray.core.run_config import RunConfig
from voxray.train.config import MODEL_PARAMS
from voxray.train.log_tail import Record
from voxray.train.run_folder import RunFolder

IMAGES = (".png", ".jpg", ".jpeg")
NO_METRICS = {"kind", "step", "epoch", "epochs", MODEL_PARAMS, "stage_step", "planned", "time_s"}


@dataclass(frozen=True)
class RunInfo:
    """A run as a tracker shows it. `config` is flat, by dotted path, without secrets.

    `key`, `group` and `job_type` are set for one of many runs: its id, where a tracker takes one that is
    given, what they belong to, and what it is to them.
    """

    run: RunFolder
    name: str
    task: str
    experiment: str
    description: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    key: str = ""
    group: str = ""
    job_type: str = ""


def run_info(run: RunFolder, config: RunConfig) -> RunInfo:
    """Return what trackers are told of a run; values that look like secrets are hidden."""
    values = masked("", config.model_dump(mode="json"))
    return RunInfo(
        run=RunFolder(run.path.resolve()),
        name=config.run_name,
        task=config.task.rpartition(":")[2],
        experiment=config.experiment_name or config.run_name,
        description=config.description,
        tags=config.tags,
        config=flattened(values),
    )


class TrackerState:
    """RUN/trackers/<key>.json: the run's id at the tracker, where it is kept, how far into the log it is."""

    def __init__(self, run: RunFolder, key: str) -> None:
        """Read what an earlier driver left; nothing where there was none, or where it is broken."""
        self._file = run.path / "trackers" / f"{key}.json"
        self.id, self.place, self.position = "", "", 0
        try:
            values = json.loads(self._file.read_text())
            self.id, self.place = str(values["id"]), str(values["place"])
            self.position = int(values["position"])
        except (OSError, ValueError, KeyError, TypeError):
            return

    def go_to(self, place: str, whole: bool = False) -> bool:
        """Note where the run is kept now; return whether that place has what came before.

        Where it has not, or where `whole` says that it begins empty each time, all of the log is sent.
        """
        goes_on = place == self.place and not whole
        if not goes_on:
            self.place, self.position = place, 0
        return goes_on

    def save(self) -> None:
        """Write the file whole, so that a kill leaves the one before."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(f".partial-{os.getpid()}")
        partial.write_text(json.dumps({"id": self.id, "place": self.place, "position": self.position}))
        partial.replace(self._file)


class Tracker(Protocol):
    """One place that a run is shown in. Its methods are called by one thread, and may fail or take long."""

    key: str  # of its section in `logging` and of its file in RUN/trackers
    name: str
    patience_s: float  # how long the end of a run may wait for it

    def start(self, info: RunInfo, state: TrackerState) -> str:
        """Begin, or go on with, the run; return a line that tells where to look, or nothing. May be called
        again after it failed.
        """
        ...

    def record(self, record: Record) -> None:
        """Take one record of the log; called again with the same record after it failed."""
        ...

    def flush(self) -> None:
        """Called after a round of records: what was taken is to be kept."""
        ...

    def finish(self, status: str) -> None:
        """End the run: `finished`, `failed` or `interrupted`."""
        ...


def metrics(record: Record) -> dict[str, float]:
    """Return a record's numbers by name; lists and undefined values stay in the log.

    An epoch's mean of a training loss is `train_epoch/…`, apart from the losses of single updates.
    """
    means = record["kind"] != "step"
    return {
        name.replace("train/", "train_epoch/", 1) if means and name.startswith("train/") else name: value
        for name, value in record.items()
        if name not in NO_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    }


def best_checkpoint(run: RunFolder) -> Path | None:
    """Return the checkpoint that the run's `best` names, if any."""
    from voxray.train.checkpoints import checkpoint

    return checkpoint.best(run.checkpoints)
