"""The inline executor: a trial's training loop runs inside the trial's own reused Ray actor.

A nested Train run would start about 8 processes and take 20 CPU-seconds per trial, a reused actor takes 0.1.
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownLambdaType=false

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxray.core.run_config import RunConfig

# Trains one config in one folder, in this process, and reports numbers once per epoch.
TrainFunction = Callable[[RunConfig, Path, Callable[[dict[str, float]], None]], None]

# A trial's last report says how it ended: Tune's callbacks cannot tell a stopped trial from a finished one.
OUTCOME, FINISHED, CRASHED, REASON = "voxray_outcome", "finished", "crashed", "voxray_reason"
ERROR_FILE = "error.txt"


@dataclass(frozen=True, repr=False)
class Job:
    """One trial as its actor gets it."""

    index: int
    run_dir: Path
    config: RunConfig

    def __repr__(self) -> str:
        """Return the index alone: Tune writes a trial's config into names and logs."""
        return f"trial {self.index}"


def inline(train: TrainFunction) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune runs in a trial's actor, with the job under the key `job`.

    An exception is reported, not raised, so that the actor lives on for the next trial; the trial's folder
    keeps its traceback.
    """

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        job: Job = config["job"]
        try:
            train(job.config, job.run_dir, lambda metrics: tune.report(dict(metrics)))
        except Exception as error:
            job.run_dir.mkdir(parents=True, exist_ok=True)
            (job.run_dir / ERROR_FILE).write_text(traceback.format_exc())
            tune.report({OUTCOME: CRASHED, REASON: f"{type(error).__name__}: {error}"})
        else:
            tune.report({OUTCOME: FINISHED})

    return trial
