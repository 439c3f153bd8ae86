"""A whole ablation: STUDY is opened, the cells that are left are trained, as many at a time as fit."""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from voxray.config.errors import InputError
from voxray.data.dataset import ensure_dataset
from voxray.data.source import choose_transport
from voxray.train.launch import growth
from voxray.tune.ablation.cells import Ablation
from voxray.tune.ablation.data_check import refuse_other_data
from voxray.tune.ablation.ledger import CellLedger, fetch_cells
from voxray.tune.ablation.results import Results, results_of
from voxray.tune.ablation.table import write_tables
from voxray.tune.executors.resources import Fitting, fit_trials
from voxray.tune.executors.strategy import TrainFunction
from voxray.tune.job import Job
from voxray.tune.ledger import Suggestion, TrialRow
from voxray.tune.study.folder import locked_study, mirror_of
from voxray.tune.study.journal import JOURNAL
from voxray.tune.trackers.trial_trackers import CATCH_UP_S, TrialTrackers
from voxray.tune.tuner import run_trials


@contextmanager
def open_ablation(ablation: Ablation) -> Generator[CellLedger]:
    """Open an ablation for this process alone, or begin it. Where `storage.path` is a URL, what other
    machines have made of it is fetched first; the locks of STUDY and cells are this machine's.

    Raises InputError when another process works on it, its folder holds a search, or cells that it would
    reuse were trained on other data.
    """
    plan = ablation.plan
    fetch_cells(ablation)
    if (plan.folder / JOURNAL).exists():
        raise InputError(
            f"{plan.folder} holds a search; give the ablation another name with experiment_name="
        )
    refuse_other_data((ablation.cell_folder(cell), cell.arm.config.config) for cell in ablation.cells)
    with locked_study(plan):
        ledger = CellLedger(ablation)
        try:
            yield ledger
        finally:
            ledger.cut_short()


def train_cells(
    ledger: CellLedger,
    train: TrainFunction,
    tell: Callable[[str], None],
    done: Callable[[TrialRow], None],
) -> bool:
    """Train the cells that are left, with Ray connected; `tell` hears what was chosen, `done` of each end.

    Cells that another process trains are waited for. The tables in STUDY are written anew after each cell.
    Return False when Ctrl-C ended it. Raises InputError when not even one cell fits into the cluster.
    """
    ablation = ledger.ablation
    fitting = _fitting(ablation)
    num_left, num_all = len(ledger.left()), len(ablation.cells)
    tell(f"{ablation.plan.folder}: {num_left} of {num_all} cells to train, {fitting.text}")

    def ended(row: TrialRow) -> None:
        trackers.ended(row)
        write_results(ledger)
        if mirror:
            mirror.push_or_tell(tell)
        done(row)

    def make_job(suggestion: Suggestion) -> Job:
        job = ledger.job(suggestion, fitting.executor)
        trackers.begin(job, _shown_as(ledger, suggestion.index))
        return job

    mirror = mirror_of(ablation.plan)
    trackers = TrialTrackers.of(ablation.plan, tell)
    write_results(ledger)
    with trackers:
        _catch_up(trackers, ledger)
        return _train_all(ledger, make_job, train, fitting, tell, ended)


def send_rest(ledger: CellLedger, tell: Callable[[str], None]) -> None:
    """Send the trackers what they have not of cells that are trained already."""
    with TrialTrackers.of(ledger.ablation.plan, tell, CATCH_UP_S) as trackers:
        _catch_up(trackers, ledger)


def _catch_up(trackers: TrialTrackers, ledger: CellLedger) -> None:
    trackers.catch_up(
        ledger.rows(), lambda index: [ledger.folder(index)], lambda index: _shown_as(ledger, index)
    )


def _shown_as(ledger: CellLedger, index: int) -> str:
    """Return a cell's name at the trackers; its folder is named by its key."""
    cell = ledger.cell(index)
    return f"{cell.arm.name} seed {cell.seed}"


def _train_all(
    ledger: CellLedger,
    make_job: Callable[[Suggestion], Job],
    train: TrainFunction,
    fitting: Fitting,
    tell: Callable[[str], None],
    ended: Callable[[TrialRow], None],
) -> bool:
    """Train what is left and wait for what others train, until there is neither; False after Ctrl-C."""
    tune_folder = ledger.ablation.plan.folder / "ray"
    while True:
        if ledger.remaining() and not run_trials(ledger, make_job, train, fitting, None, tune_folder, ended):
            return False
        if not ledger.elsewhere:
            return True
        tell(f"waiting for {len(ledger.elsewhere)} cells that another process trains")
        try:
            freed = ledger.wait_for_others()
        except KeyboardInterrupt:
            return False
        for row in freed:
            ended(row)


def _fitting(ablation: Ablation) -> Fitting:
    """Make every arm's dataset where it is synthetic, then choose how the cells run."""
    import ray

    configs = [arm.config.config for arm in ablation.arms]
    datasets = [ensure_dataset(config) for config in configs]
    reads = any(
        choose_transport(dataset, config.data)[0] == "stream"
        for dataset, config in zip(datasets, configs, strict=True)
    )
    return fit_trials(
        [config.scale for config in configs],
        ablation.config.executor,
        ray.nodes(),
        most_at_a_time=ablation.config.max_concurrent,
        reads=reads,
        place=ablation.plan.place("ablate"),
        growth=growth(),
    )


def write_results(ledger: CellLedger) -> Results:
    """Write what is known now into STUDY (ablation.json, .md, .csv, .tex) and return it."""
    results = results_of(ledger)
    write_tables(results, Path(ledger.ablation.plan.folder))
    return results
