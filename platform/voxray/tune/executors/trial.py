"""`Trial`: what Ray Tune runs. It trains a job's runs in order by one of three strategies, behind one report.

The actor is reused from trial to trial, also after a scheduler has stopped one: a stock function trainable
cannot be, and starting another actor takes 3 s.
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from dataclasses import dataclass
from typing import Any, ClassVar

from ray.tune import PlacementGroupFactory, Trainable
from ray.tune.result import DONE

from voxray.train.control import Control, Stopped
from voxray.train.fit_context import Report
from voxray.train.run_folder import RunFolder
from voxray.tune.executors.failure import Failure, TrainingFailedError, WorkerDiedError
from voxray.tune.executors.lockstep import Lockstep
from voxray.tune.executors.resources import Fitting
from voxray.tune.executors.strategy import Inline, Strategy, TrainFunction, hide_gpus
from voxray.tune.job import CRASHED, ERROR_FILE, FINISHED, OUTCOME, REASON, REPORTS, RUN, Job, Run


@dataclass(frozen=True)
class Means:
    """What all trials of a study have: what trains, what is reserved, whether a scheduler may stop them."""

    train: TrainFunction
    fitting: Fitting
    has_scheduler: bool


class Trial(Trainable):
    """A trial's actor; `config["job"]` is what it trains. `trainable` makes the class that Tune gets."""

    means: ClassVar[Means]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """Return what Tune reserves for a trial."""
        return PlacementGroupFactory(cls.means.fitting.bundles, strategy="PACK")

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job."""
        self._job: Job = config["job"]
        self._lockstep: Lockstep | None = None
        self._strategy: Strategy | None = None
        self._strategy_name = ""
        self.config = {}  # Tune sends it back with every result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what is being trained, which Tune has stopped or paused, and take another job."""
        self._end()
        self._job = new_config.pop("job")
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next report. The last one says how the trial ended."""
        if self._lockstep is None:
            self._lockstep = Lockstep(self._train_runs, waits=self.means.has_scheduler)
        try:
            report = self._lockstep.next()
        except WorkerDiedError:
            raise  # Tune begins the trial once more
        except Exception as error:
            failure = error.failure if isinstance(error, TrainingFailedError) else Failure.of(error)
            return {OUTCOME: CRASHED, REASON: failure.reason, REPORTS: self._lockstep.untold(), DONE: True}
        if report is None:
            return {OUTCOME: FINISHED, REPORTS: self._lockstep.untold(), DONE: True}
        return dict(report)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """End the training, for Tune pauses the trial: its folders are then whole, and nobody writes there.

        `checkpoint_dir` stays empty.
        """
        self._end()

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: a run goes on from its folder's newest checkpoint by itself."""

    def cleanup(self) -> None:
        """End what is being trained, and every worker."""
        self._end()
        if self._strategy:
            self._strategy.close()

    def _end(self) -> None:
        if self._lockstep:
            self._lockstep.stop()
            self._lockstep = None

    def _train_runs(self, report: Report, control: Control) -> None:
        """Train the job's runs in order, without those that are finished; each report says of which it is."""
        strategy = self._chosen()
        for number, run in enumerate(self._job.runs):
            folder = RunFolder(run.path)
            if folder.is_finished():
                continue
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.begin_attempts()
            (folder.path / ERROR_FILE).unlink(missing_ok=True)

            def numbered(numbers: dict[str, float], number: int = number) -> None:
                report({**numbers, RUN: number})

            try:
                _train_with_less_memory(strategy, run, numbered, control)
            except TrainingFailedError as error:
                (folder.path / ERROR_FILE).write_text(error.failure.trace)
                raise
            except Stopped:
                if control.should_stop():
                    raise
                reason = f"{folder.stop_file} asked the run to stop; delete it"
                raise TrainingFailedError(Failure(reason, reason)) from None

    def _chosen(self) -> Strategy:
        """Return the strategy that the job asks for; the one before it is kept where it is the same."""
        name = self._job.executor
        if self._strategy is None or name != self._strategy_name:
            if self._strategy:
                self._strategy.close()
            self._strategy, self._strategy_name = self._made(name), name
        return self._strategy

    def _made(self, name: str) -> Strategy:
        if name == "inline":
            hide_gpus(self.means.fitting.worker)
            return Inline(self.means.train)
        if name == "gang":
            from voxray.tune.executors.gang import Gang

            return Gang(self.means.train, self.means.fitting.worker)
        from voxray.tune.executors.ray_train import RayTrain

        return RayTrain()


def trainable(train: TrainFunction, fitting: Fitting, has_scheduler: bool) -> type[Trial]:
    """Return the class that Tune runs: `train` trains a run in each process that takes part."""
    return type("VoxrayTrial", (Trial,), {"means": Means(train, fitting, has_scheduler)})


def _train_with_less_memory(strategy: Strategy, run: Run, report: Report, control: Control) -> None:
    """Train, again while the memory does not hold a micro-batch: RUN says into how many parts it is cut."""
    while True:
        try:
            strategy.train(run, report, control)
            return
        except TrainingFailedError as error:
            if not error.failure.wants_retry:
                raise
