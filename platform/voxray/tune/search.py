"""A whole search: the dataset first, then the trials, as many at a time as fit."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Callable

from voxray.data.dataset import dataset_path, ensure_dataset
from voxray.data.source import choose_transport, open_source
from voxray.train.launch import growth
from voxray.tune.checks import place_of_scale, scales_of
from voxray.tune.executors.resources import Fitting, fit_trials
from voxray.tune.executors.strategy import TrainFunction
from voxray.tune.job import Job
from voxray.tune.ledger import Suggestion, TrialRow
from voxray.tune.plan import Plan
from voxray.tune.study.folder import mirror_of
from voxray.tune.study.ledger import StudyLedger
from voxray.tune.trackers.trial_trackers import TrialTrackers
from voxray.tune.tuner import run_trials

DATA = "data."


def search(
    plan: Plan,
    ledger: StudyLedger,
    train: TrainFunction,
    tell: Callable[[str], None],
    done: Callable[[TrialRow], None],
) -> bool:
    """Run the trials that are left, with Ray connected; `tell` hears what was chosen, `done` of each end.

    Return False when Ctrl-C ended the search. Raises InputError when not even one trial fits the cluster.
    """
    from voxray.tune.schedulers.checks import check_shapes
    from voxray.tune.schedulers.make import make_scheduler

    config = plan.base.config
    ensure_dataset(config)
    check_shapes(plan)
    fitting = fit_search(plan)
    ledger.num_gpus = fitting.num_gpus
    num_left = len(ledger.remaining())
    trials = "trials until the budget is spent" if ledger.num_trials is None else f"{num_left} trials to do"
    tell(f"{plan.folder}: {trials}, {fitting.text}")

    def make_job(suggestion: Suggestion) -> Job:
        job = plan.job(suggestion, fitting.executor)
        for run in job.runs:
            if run.config.data != config.data:
                ensure_dataset(run.config)
        trackers.begin(job)
        return job

    def ended(row: TrialRow) -> None:
        if mirror:
            mirror.push_or_tell(tell)
        trackers.ended(row)
        done(row)

    mirror = mirror_of(plan)

    trackers = TrialTrackers.of(plan, tell)
    scheduler = make_scheduler(
        plan.search.scheduler,
        plan.space.config.objectives,
        epochs_of(plan),
        ledger,
        make_job,
        plan.search.space,
        seed=plan.search.sampler.seed,
        at_a_time=fitting.at_a_time,
    )
    with trackers:
        trackers.catch_up(ledger.rows(), plan.run_folders)
        return run_trials(ledger, make_job, train, fitting, scheduler, plan.folder / "ray", ended)


def fit_search(plan: Plan) -> Fitting:
    """Return how the trials run on the cluster that is connected; the dataset is there.

    Raises InputError when not even one fits.
    """
    import ray

    config, search = plan.base.config, plan.search
    reads = choose_transport(dataset_path(config), config.data)[0] == "stream"
    # Another `data.prepare` makes another dataset, beside the trials that run.
    reads = reads or any(path.startswith(DATA) for path in search.space)
    return fit_trials(
        scales_of(plan),
        search.executor,
        ray.nodes(),
        most_at_a_time=search.max_concurrent,
        reads=reads,
        place=place_of_scale(plan),
        growth=growth(),
    )


def epochs_of(plan: Plan) -> float:
    """Return the epochs of a whole run of the experiment, over all its stages."""
    from voxray.train.length import planned_epochs

    config = plan.base.config
    stages = config.resolved_stages()
    if all(stage.training.steps is None for stage in stages):
        return sum(stage.training.epochs for stage in stages)
    source = open_source(dataset_path(config), config.data)
    return sum(planned_epochs(source, stage) for stage in stages)
