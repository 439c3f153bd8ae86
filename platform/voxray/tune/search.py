"""A whole search: the dataset first, then the trials, as many at a time as fit."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Callable, Mapping

from voxray.config.errors import RunError
from voxray.config.provenance import write_provenance
from voxray.data.dataset import ensure_dataset
from voxray.train.config import ScaleConfig
from voxray.train.run_folder import RunFolder
from voxray.tune.inline import Job, TrainFunction
from voxray.tune.plan import Plan
from voxray.tune.study import StudyLedger, Suggestion, TrialRow
from voxray.tune.tuner import run_trials

SPARE_CPUS = 1  # for Ray Data's read tasks: without one they and the trials starve each other for ever


def search(
    plan: Plan,
    ledger: StudyLedger,
    train: TrainFunction,
    tell: Callable[[str], None],
    done: Callable[[TrialRow], None],
) -> bool:
    """Run the trials that are left, with Ray connected; `tell` hears what was chosen, `done` of each end.

    Return False when Ctrl-C ended the search. Raises RunError when not even one trial fits into the cluster.
    """
    import ray

    ensure_dataset(plan.base.config)
    there = ray.cluster_resources()
    resources = trial_resources(plan.base.config.scale, there)
    fit = num_that_fit(resources, there)
    remaining = len(ledger.remaining())
    at_a_time = min(fit, plan.space.config.search.max_concurrent or fit, remaining)
    tell(
        f"{plan.folder}: {remaining} trials to do, {at_a_time} at a time ({_said(resources)} each, {fit} fit)"
    )

    def job(suggestion: Suggestion) -> Job:
        trial = plan.trial(suggestion.index, suggestion.values)
        ensure_dataset(trial.config)
        folder = plan.trial_folder(suggestion.index).absolute()
        RunFolder(folder).write_config(trial.config, trial.sources)
        write_provenance(folder)
        return Job(suggestion.index, folder, trial.config)

    return run_trials(ledger, job, train, resources, at_a_time, plan.folder / "ray", done)


def trial_resources(scale: ScaleConfig, cluster: Mapping[str, float]) -> dict[str, float]:
    """Return what one trial reserves; `gpus_per_worker: auto` is one GPU where the cluster has any."""
    gpus = scale.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if cluster.get("GPU", 0) >= 1 else 0.0
    return {"CPU": scale.cpus_per_worker, "GPU": gpus} if gpus else {"CPU": scale.cpus_per_worker}


def num_that_fit(resources: Mapping[str, float], cluster: Mapping[str, float]) -> int:
    """Return how many trials run at a time, with a CPU left for reading data.

    Raises RunError when not even one fits.
    """
    free = {**cluster, "CPU": cluster.get("CPU", 0) - SPARE_CPUS}
    fit = min(int(free.get(name, 0) // amount) for name, amount in resources.items())
    if fit < 1:
        there = {name: cluster.get(name, 0) for name in resources}
        raise RunError(
            f"a trial needs {_said(resources)}, and reading its data {SPARE_CPUS} CPU; the cluster has "
            f"{_said(there)}; lower scale.cpus_per_worker or scale.gpus_per_worker"
        )
    return fit


def _said(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
