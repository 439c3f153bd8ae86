"""Build the scheduler that a space file asks for, with what the study remembers of an earlier search."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from voxray.tune.config import ObjectiveConfig, SchedulerConfig
from voxray.tune.job import Job
from voxray.tune.ledger import Suggestion, TrialRow
from voxray.tune.schedulers.asha import Asha
from voxray.tune.schedulers.breed import GoOnFrom, PopulationLedger
from voxray.tune.schedulers.hyperband import HyperBand
from voxray.tune.schedulers.median import MedianStopping
from voxray.tune.schedulers.pbt import Population
from voxray.tune.schedulers.policy import StoppingPolicy
from voxray.tune.space.config import Distribution

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

    from voxray.tune.schedulers.scheduler import Curves


class ScheduledLedger(PopulationLedger, Protocol):
    """What a scheduler asks the study's ledger."""

    def remaining(self) -> list[int]:
        """Return the trials that are left."""
        ...

    def rows(self) -> list[TrialRow]:
        """Return the trials that are done."""
        ...

    def curves(self) -> "Curves":
        """Return the evaluations of all trials."""
        ...

    def exploits(self) -> Mapping[int, Sequence[Mapping[str, Any]]]:
        """Return what was noted by `note_exploit`, by index."""
        ...


def make_scheduler(
    config: SchedulerConfig,
    objectives: Sequence[ObjectiveConfig],
    max_epochs: float,
    ledger: ScheduledLedger,
    make_job: Callable[[Suggestion], Job],
    space: Mapping[str, Distribution],
    *,
    seed: int = 0,
    at_a_time: int | None = None,
) -> "TrialScheduler | None":
    """Return what Tune is to use; None for its own first come, first served.

    `max_epochs` is the length of a whole run over all stages; `seed` is the sampler's; `at_a_time` trials run
    at the same time.
    """
    if config.name == "none":
        return None
    from voxray.tune.schedulers.scheduler import Clock, StoppingScheduler

    clock = Clock(config.unit, objectives)
    if config.name != "pbt":
        return StoppingScheduler(_stopping(config, max_epochs), clock, ledger.curves())
    from voxray.tune.schedulers.population import PopulationScheduler

    members, exploits = ledger.remaining(), ledger.exploits()
    noted = [note["generation"] for index in members for note in exploits.get(index, ())]
    return PopulationScheduler(
        Population(members, config.every, config.quantile, seed, max(noted, default=0)),
        clock,
        GoOnFrom(config, space, ledger, make_job, seed),
        lambda: {row.index for row in ledger.rows()},
        max_epochs,
        at_a_time,
    )


def _stopping(config: SchedulerConfig, max_epochs: float) -> StoppingPolicy:
    match config.name:
        case "asha":
            return Asha(config.grace, config.reduction_factor)
        case "hyperband":
            return HyperBand(config.grace, config.reduction_factor, config.longest or max_epochs)
        case _:
            assert config.name == "median"
            return MedianStopping(config.grace, config.median_trials)
