"""Run trials on Ray Tune: the driver asks and tells, reused actors train, the ledger remembers."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from voxray.config.errors import RunError
from voxray.tune.executors.resources import Fitting
from voxray.tune.executors.strategy import TrainFunction
from voxray.tune.job import Job
from voxray.tune.ledger import Ledger, Suggestion, TrialRow

if TYPE_CHECKING:
    from ray.tune import Callback, RunConfig
    from ray.tune.schedulers import TrialScheduler

# An actor that dies (a lost node) is started once more. An exception is not: it would come again.
DEATHS_FORGIVEN = 1
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # an experiment's relative paths are meant from the working directory
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's waits for the running epochs, 10 s and more
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # nobody reads its snapshots, and they cost 0.04 CPU-s per trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a trial has no metric
}


def run_trials(
    ledger: Ledger,
    make_job: Callable[[Suggestion], Job],
    train: TrainFunction,
    fitting: Fitting,
    scheduler: "TrialScheduler | None",
    tune_folder: Path,
    done: Callable[[TrialRow], None],
) -> bool:
    """Run what the ledger has to do, as `fitting` says; `done` hears of every trial's end.

    `train` trains a run in each process that takes part. Tune's own files live in `tune_folder` and go at the
    end. Return False when Ctrl-C ended the search: what ran is then let go of, to be run again. Ray must be
    connected.
    """
    os.environ.update(TUNE_SETTINGS, TUNE_MAX_PENDING_TRIALS_PG=str(fitting.at_a_time))
    from ray import tune
    from ray.air._internal import usage
    from ray.util import remove_placement_group

    from voxray.tune.executors.groups import give_back, of_this_process
    from voxray.tune.executors.trial import trainable
    from voxray.tune.interrupt import Interrupt
    from voxray.tune.schedulers.scheduler import InOrder
    from voxray.tune.searcher import LedgerSearcher
    from voxray.tune.slots import LimitedSearcher, Slots

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it advises Tuner.restore, which we never use
    usage.tag_callbacks = lambda callbacks: False  # it imports W&B (0.7 s) to count whose callbacks are used
    interrupt = Interrupt()
    leaves_groups = fitting.executor == "train"
    there_before = of_this_process()
    slots = Slots(fitting.at_a_time, (lambda: give_back(0)) if leaves_groups else None)
    tuner = tune.Tuner(
        trainable(train, fitting, scheduler is not None),
        tune_config=tune.TuneConfig(
            search_alg=LimitedSearcher(LedgerSearcher(ledger, make_job, done), slots),
            scheduler=scheduler or InOrder(),
            num_samples=-1,  # the ledger says when no more begin
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=_run_config(tune_folder, [slots, interrupt], stops_early=scheduler is not None),
    )
    try:
        with interrupt.listening():
            tuner.fit()
    except KeyboardInterrupt:
        interrupt.noticed = True
    finally:
        ledger.cut_short()
        if leaves_groups:
            give_back()
        for name, group in of_this_process().items():  # Tune leaves those of trials that Ctrl-C cut short
            if name not in there_before:
                remove_placement_group(group)
        shutil.rmtree(tune_folder, ignore_errors=True)
    if ledger.remaining() and not interrupt.noticed:
        raise RunError("Ray Tune ended before all trials were done; run the same command to continue")
    return not ledger.remaining()


def _run_config(tune_folder: Path, callbacks: "list[Callback]", stops_early: bool) -> "RunConfig":
    from ray import tune

    return tune.RunConfig(
        name=tune_folder.name,
        storage_path=str(tune_folder.parent.absolute()),
        verbose=0,
        callbacks=callbacks,
        failure_config=tune.FailureConfig(max_failures=DEATHS_FORGIVEN),
        # Tune's checkpoint at a trial's end is one more call of the actor, and ours holds nothing. What has
        # ended needs none; a training that a scheduler stops is ended by that call.
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=stops_early),
    )
