"""What stays the same while one process trains a run."""

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from voxray.core import collectives
from voxray.core.batch import BatchSource
from voxray.core.run_config import RunConfig
from voxray.core.task import Task
from voxray.train.checkpoints.checkpoint import Saver
from voxray.train.control import Control
from voxray.train.mirror import Mirror
from voxray.train.run_folder import RunFolder
from voxray.train.state import TrainState

Report = Callable[[dict[str, float]], None]


@dataclass
class Fit:
    """The parts of a run that the loop's functions share, and what they count."""

    task: Task
    source: BatchSource
    config: RunConfig
    run: RunFolder
    report: Report
    device: torch.device
    control: Control
    saver: Saver | None = None  # of rank 0
    state: TrainState | None = None
    started: float = field(default_factory=time.monotonic)
    rows_seen: int = 0
    to_skip: list[list[int]] = field(default_factory=list[list[int]])  # updates that a rollback leaves out
    updates_seen: int = 0

    def __post_init__(self) -> None:
        """Find out where the run is stored."""
        self.mirror = Mirror.of(self.config.storage.path, self.run.path)

    def at_hand(self, chosen: Path) -> Path:
        """Return this machine's copy of a checkpoint that rank 0 has chosen."""
        own = self.run.checkpoints / chosen.name
        if self.mirror and not own.exists():
            self.mirror.fetch_checkpoint(chosen.name)
        return own

    def log(self, record: dict[str, object]) -> None:
        """Append a record to the run's log, from rank 0 alone."""
        if collectives.rank() == 0:
            self.run.log({**record, "time_s": round(time.monotonic() - self.started, 3)})

    def note(self, text: str) -> None:
        """Log a sentence that the user should read."""
        self.log({"kind": "note", "text": text})

    def progress(self, done: int, planned: int) -> dict[str, float]:
        """Return the seconds that the rest of the stage will take at the pace since the process began."""
        pace = (time.monotonic() - self.started) / max(1, self.updates_seen)
        return {"stage_step": done, "planned": planned, "eta_s": round(pace * max(0, planned - done), 1)}

    @contextlib.contextmanager
    def saving(self) -> Generator[None]:
        """Keep a saver on rank 0; what is being written when the body ends is written whole."""
        if collectives.rank() == 0:
            kept = self.config.checkpoints
            send = partial(self.mirror.push_or_tell, self.note) if self.mirror else lambda: None
            self.saver = Saver(self.run.checkpoints, kept.keep, kept.asynchronous, self.note, send)
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to show
                self.finish_saving()
            raise
        self.finish_saving()

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is written. Raises RunError when it could not be."""
        if self.saver:
            self.saver.wait()
