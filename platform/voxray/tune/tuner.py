"""Run trials on Ray Tune: the driver asks and tells, reused actors train, the ledger remembers."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from voxray.config.errors import RunError
from voxray.tune.inline import Job, TrainFunction, inline
from voxray.tune.study import StudyLedger, Suggestion, TrialRow

# An actor that dies (a lost node) is started once more. An exception is not: it would come again.
DEATHS_FORGIVEN = 1
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # an experiment's relative paths are meant from the working directory
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's waits for the running epochs, 10 s and more
}


def run_trials(
    ledger: StudyLedger,
    job: Callable[[Suggestion], Job],
    train: TrainFunction,
    resources: Mapping[str, float],
    max_concurrent: int,
    tune_folder: Path,
    done: Callable[[TrialRow], None],
) -> bool:
    """Run what the ledger has to do, each trial with `resources`; `done` hears of every trial's end.

    Tune's own files live in `tune_folder` and go at the end. Return False when Ctrl-C ended the search: what
    ran is then told FAIL, to be run again. Ray must be connected.
    """
    os.environ.update(TUNE_SETTINGS)
    from ray import tune

    from voxray.tune.interrupt import Interrupt
    from voxray.tune.searcher import StudySearcher

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it advises Tuner.restore, which we never use
    interrupt = Interrupt()
    tuner = tune.Tuner(
        tune.with_resources(inline(train), dict(resources)),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(ledger, job, done),
            num_samples=len(ledger.remaining()),
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=tune_folder.name,
            storage_path=str(tune_folder.parent.absolute()),
            verbose=0,
            callbacks=[interrupt],
            failure_config=tune.FailureConfig(max_failures=DEATHS_FORGIVEN),
        ),
    )
    try:
        with interrupt.listening():
            tuner.fit()
    except KeyboardInterrupt:
        interrupt.noticed = True
    finally:
        ledger.cut_short()
        shutil.rmtree(tune_folder, ignore_errors=True)
    if ledger.remaining() and not interrupt.noticed:
        raise RunError("Ray Tune ended before all trials were done; run the same command to continue")
    return not ledger.remaining()
