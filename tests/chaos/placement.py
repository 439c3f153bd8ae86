"""Tune stops trials of two workers on a private Ray of 4 CPUs; a process of test_placement.py.

python placement.py CASE DATASET FOLDER. Ray has no dashboard, as `voxray tune` starts it: so Ray Train's own
cleaner cannot ask whether a controller lives. CASE is `stock` (a TorchTrainer inside of a function trainable,
as Ray's guide writes it), `gang` or `train` (ten trials by our executor), or `hang` (two of `train` whose
workers hang). Prints what it saw as a JSON object.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from voxray.cluster.connect import connect

NUM_CPUS, NUM_WORKERS, NUM_TRIALS = 4, 2, 10
CLEANED_WITHIN_S = 15.0  # Ray Train's cleaner looks every second


def main(case: str, dataset: str, folder: str) -> None:
    """Run the trials; look at the placement groups that are left; ask for all CPUs."""
    from ray.util import placement_group, remove_placement_group

    with (
        tempfile.TemporaryDirectory(prefix="vx", dir="/tmp", ignore_cleanup_errors=True) as ray_folder,
        connect(dashboard=False, num_cpus=NUM_CPUS, temp_dir=ray_folder),
    ):
        saw = stock(ray_folder) if case == "stock" else ours(case, Path(dataset), Path(folder))
        saw["left"] = num_held()
        all_cpus = placement_group([{"CPU": 1}] * NUM_CPUS)
        saw["are all CPUs free"] = all_cpus.wait(10)
        remove_placement_group(all_cpus)
        print(json.dumps(saw))


def num_held() -> int:
    """Return how many placement groups hold resources, or wait for them."""
    from ray.util import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def ours(case: str, dataset: Path, folder: Path) -> dict:
    """Stop each trial after its first report; look at that moment at what is left of those before it."""
    from few_trials import Notes, StopAll, Trials
    from voxray.tune.executors.groups import orphans

    held: list[int] = []
    leaked: list[int] = []

    class Look(StopAll):
        def on_trial_result(self, tune_controller, trial, result) -> str:
            held.append(num_held())
            leaked.append(len(orphans()))
            return super().on_trial_result(tune_controller, trial, result)

    executor = "train" if case == "hang" else case
    trials = Trials(dataset, folder, executor, **{"scale.num_workers": NUM_WORKERS, "training.epochs": 50})
    if case == "hang":
        trials.task = "voxray.testing.chaos:HangingTiny"
    ledger = Notes(2 if case == "hang" else NUM_TRIALS)
    began = time.monotonic()
    trials.run(ledger, Look(), most=1)
    return {"ends": list(ledger.ends.values()), "held": held, "leaked": leaked, "s": time.monotonic() - began}


def stock(folder: str) -> dict:
    """Let Tune stop a nested trial after its first report; wait for Ray to clean up; mend it."""
    from voxray.tune.executors.groups import give_back, orphans

    stop_a_nested_trial(folder)
    until = time.monotonic() + CLEANED_WITHIN_S
    while num_held() and time.monotonic() < until:
        time.sleep(0.2)
    return {"left by Ray": num_held(), "orphans": len(orphans()), "given back": give_back()}


def stop_a_nested_trial(folder: str) -> None:
    """Run one trial as Ray's guide writes it."""
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Stop(FIFOScheduler):
        def on_trial_result(self, tune_controller, trial, result) -> str:
            return TrialScheduler.STOP

    def work() -> None:
        while True:
            train.report({"loss": 1.0})
            time.sleep(0.5)

    def trial(config: dict) -> None:
        TorchTrainer(
            work,
            scaling_config=train.ScalingConfig(num_workers=NUM_WORKERS),
            run_config=train.RunConfig(storage_path=folder, name="nested", callbacks=[TuneReportCallback()]),
        ).fit()

    tune.Tuner(
        tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": 1}])),
        tune_config=tune.TuneConfig(num_samples=1, scheduler=Stop(), max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=folder, name="tune", verbose=0),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
