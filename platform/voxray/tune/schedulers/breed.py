"""PBT's exploit step for a member of a population: another's state, values near its own, a note."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from voxray.config.errors import InputError, RunError
from voxray.train.checkpoints.adopt import finished, offer
from voxray.train.run_folder import RunFolder
from voxray.tune.config import SchedulerConfig
from voxray.tune.job import Job
from voxray.tune.ledger import Suggestion
from voxray.tune.schedulers.explore import explore
from voxray.tune.schedulers.pbt import Exploit, random_of
from voxray.tune.schedulers.population import Place
from voxray.tune.space.config import Distribution

SAVED_WITHIN_S = 60.0  # a report comes before its checkpoint is on the disk
MOST_ATTEMPTS = 20  # of values that neither a constraint nor the experiment refuses


class PopulationLedger(Protocol):
    """What the ledger of a population can do beside asking and telling."""

    def values(self, index: int) -> dict[str, Any]:
        """Return the values that a running trial has now."""
        ...

    def allows(self, values: Mapping[str, Any]) -> bool:
        """Return whether the constraints of keys hold."""
        ...

    def note_exploit(self, index: int, exploit: Mapping[str, Any]) -> None:
        """Note what a member took over."""
        ...


class GoOnFrom:
    """Offers the donor's checkpoint to the member's run and makes its new job."""

    def __init__(
        self,
        config: SchedulerConfig,
        space: Mapping[str, Distribution],
        ledger: PopulationLedger,
        make_job: Callable[[Suggestion], Job],
        seed: int,
    ) -> None:
        """`make_job` writes a run's config, and raises InputError when the experiment refuses the values."""
        self.config, self.space, self.seed = config, space, seed
        self._ledger, self._make_job = ledger, make_job

    def __call__(self, exploit: Exploit, member: Job, donor: Job, at: Place) -> Job | None:
        """Carry out an exploitation, the donor being `at` its last report."""
        source, target = (RunFolder(job.runs[0].path) for job in (donor, member))
        found = finished(source.checkpoints, at.step, SAVED_WITHIN_S)
        try:
            if found is None:
                raise RunError(f"trial {donor.index} has no checkpoint")
            offer(target.checkpoints, found)
        except RunError as error:
            target.log({"kind": "note", "text": f"does not go on from trial {donor.index}: {error}"})
            return None
        job, values = self._explored(exploit)
        note = {
            "epochs": at.epochs,
            "step": at.step,
            "generation": exploit.generation,
            "from": exploit.donor,
            "values": values,
        }
        self._ledger.note_exploit(exploit.index, note)
        return job

    def _explored(self, exploit: Exploit) -> tuple[Job, dict[str, Any]]:
        """Return the job with values near the donor's, or with its own when all others are refused."""
        of_donor = self._ledger.values(exploit.donor)
        chance = random_of(self.seed, exploit.index, exploit.generation, "values")
        for _ in range(MOST_ATTEMPTS):
            values = explore(self.space, of_donor, chance, self.config.resample, self.config.factors)
            if not self._ledger.allows(values):
                continue
            try:
                return self._make_job(Suggestion(exploit.index, values)), values
            except InputError:
                continue
        return self._make_job(Suggestion(exploit.index, of_donor)), of_donor
