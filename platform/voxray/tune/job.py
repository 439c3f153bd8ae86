"""What an executor gets to train (`Job`), what it reports, and how it says that a trial has ended.

A report is a flat map of numbers: the evaluation's metrics, `epoch`, `step`, `epochs` (finished over all
stages, with the part of the current one), and RUN, the place of the seed in `Job.runs`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from voxray.core.run_config import RunConfig

# A trial's last report says how it ended: Tune's callbacks cannot tell a stopped trial from a finished one.
OUTCOME, FINISHED, CRASHED, REASON = "voxray_outcome", "finished", "crashed", "voxray_reason"
RUN = "voxray_run"
REPORTS = "voxray_reports"  # where no scheduler decides: the reports since the last one that was told
ERROR_FILE = "error.txt"  # in a run's folder: the traceback


@dataclass(frozen=True)
class Run:
    """One training: its folder, absolute, and its config. It goes on from the folder's newest checkpoint."""

    path: Path
    config: RunConfig


@dataclass(frozen=True, repr=False)
class Job:
    """One trial, or one cell of an ablation, as its actor gets it: its runs, one per seed, in order."""

    index: int
    runs: tuple[Run, ...]
    executor: Literal["inline", "gang", "train"]

    def __repr__(self) -> str:
        """Return the index alone: Tune writes a trial's config into names and logs."""
        return f"trial {self.index}"
