"""What the executors have in common: `Strategy`, and the training in a process that takes part in it."""

import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from voxray.core.run_config import RunConfig
from voxray.train.control import Control, Stopped
from voxray.train.fit_context import Report
from voxray.train.run_folder import RunFolder
from voxray.tune.executors.failure import Failure, TrainingFailedError
from voxray.tune.job import Run

# Trains a config in a folder, in this process, from where the folder's newest checkpoint stands.
TrainFunction = Callable[[RunConfig, Path, Report, Control], None]
POLL_S = 0.2
# A stopped training saves its state first; one that takes longer is ended without.
STOP_WITHIN_S = 60.0


class Strategy(Protocol):
    """One way to train a run."""

    def train(self, run: Run, report: Report, control: Control) -> None:
        """Train a run to its end. `report` is called with each evaluation's numbers, from this thread.

        Raises TrainingFailedError when the training raised, WorkerDiedError when a process is gone, Stopped
        when `report` raised it or `control` asked for it.
        """
        ...

    def close(self) -> None:
        """Let go of every process and resource."""
        ...


class Inline:
    """The training loop runs in the trial's own actor.

    A nested Train run starts about 8 processes and takes 20 CPU-seconds per trial, a reused actor 0.1.
    """

    def __init__(self, train: TrainFunction) -> None:
        """Take what trains."""
        self._train = train

    def train(self, run: Run, report: Report, control: Control) -> None:
        """Train in this process."""
        train_in_process(self._train, run, report, control)

    def close(self) -> None:
        """Hold nothing."""


def train_in_process(train: TrainFunction, run: Run, report: Report, control: Control) -> None:
    """Train a run in this process, which ends when the loop hangs (`scale.hang_timeout_s`).

    Raises Stopped or TrainingFailedError.
    """
    from voxray.train.worker import watch_over

    failure = None
    try:
        with watch_over(RunFolder(run.path), run.config) as watch:
            seen = watch.control

            def rest(numbers: dict[str, float]) -> None:
                with watch.resting():
                    report(numbers)

            both = Control(lambda: seen.should_stop() or control.should_stop(), seen.should_save, seen.beat)
            train(run.config, run.path, rest, both)
    except Stopped:
        raise
    except Exception as error:
        failure = Failure.of(error)
    finally:
        _free_gpu_memory()
    if failure:
        raise TrainingFailedError(failure)


def hide_gpus(worker: Mapping[str, float]) -> None:
    """Let this process see no GPU where it has reserved none; call it before CUDA is used."""
    if not worker.get("GPU"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _free_gpu_memory() -> None:
    """Give back what torch keeps for the next tensors: trials may share a GPU, and an actor is reused."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
