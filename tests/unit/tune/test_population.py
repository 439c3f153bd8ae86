"""The adaptors to Tune on a controller made by hand: it starts, trains, pauses and loses trials as Tune."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from voxray.train.checkpoints import checkpoint
from voxray.train.checkpoints.snapshot import snapshot
from voxray.train.run_folder import RunFolder
from voxray.tune.config import ObjectiveConfig, SchedulerConfig
from voxray.tune.job import FINISHED, OUTCOME, RUN, Job, Run
from voxray.tune.schedulers.asha import Asha
from voxray.tune.schedulers.make import make_scheduler
from voxray.tune.schedulers.pbt import Exploit, Population
from voxray.tune.schedulers.population import STUCK_S, Place, PopulationScheduler
from voxray.tune.schedulers.scheduler import Clock, StoppingScheduler

EPOCHS = 6
LOSS = (ObjectiveConfig(metric="loss", mode="min"),)


def test_what_is_used_of_tune_is_there():
    """Two methods are private: look at this again with another Ray."""
    assert ray.__version__ == "2.60.0"
    for name in ("pause_trial", "_set_trial_status", "_schedule_trial_train"):
        assert callable(getattr(TuneController, name))


@dataclass(eq=False)
class FakeTrial:
    """A member: its loss falls by its rate every epoch."""

    index: int
    rate: float
    status: str = Trial.PENDING
    temporary_state: Any = field(default_factory=lambda: SimpleNamespace(ray_actor=None))
    epoch: int = 0
    loss: float = 100.0
    is_training: bool = False
    has_reported_end: bool = False

    def __post_init__(self):
        self.config = {"job": Job(self.index, (Run(Path("nowhere"), None),), "inline")}

    def set_status(self, status):
        self.status = status

    def set_config(self, config):
        self.config = config


class FakeTune:
    """One step after the other, as TuneController.step; who reports next is drawn."""

    def __init__(self, scheduler, trials: list[FakeTrial], places: int, seed: int):
        self.scheduler, self.trials, self.places = scheduler, trials, places
        self.rng = random.Random(seed)
        self.most_active = self.num_restarts = 0
        for trial in trials:
            scheduler.on_trial_add(self, trial)

    # what a scheduler calls
    def pause_trial(self, trial, should_checkpoint=True):
        assert not should_checkpoint
        assert trial.temporary_state.ray_actor
        assert not trial.is_training
        trial.status, trial.temporary_state.ray_actor = Trial.PAUSED, None

    def _set_trial_status(self, trial, status):
        trial.status = status

    def _schedule_trial_train(self, trial):
        assert trial.status == Trial.RUNNING
        assert trial.temporary_state.ray_actor
        assert not trial.is_training
        trial.is_training = True

    # what Tune does
    def step(self):
        chosen = self.scheduler.choose_trial_to_run(self)
        if chosen:
            assert chosen.status in (Trial.PAUSED, Trial.PENDING)
            chosen.status = Trial.PENDING
        for trial in self.trials:  # whatever is PENDING starts, where there is a place
            if trial.status == Trial.PENDING and self.num_actors() < self.places:
                trial.status, trial.temporary_state.ray_actor = Trial.RUNNING, object()
                trial.is_training = True
                self.num_restarts += 1
        self.most_active = max(self.most_active, self.num_actors())
        training = [trial for trial in self.trials if trial.is_training]
        if training:
            self.result(self.rng.choice(training))

    def num_actors(self):
        return sum(trial.temporary_state.ray_actor is not None for trial in self.trials)

    def result(self, trial):
        trial.is_training = False
        if trial.epoch == EPOCHS:
            trial.status, trial.temporary_state.ray_actor = Trial.TERMINATED, None
            self.scheduler.on_trial_complete(self, trial, {OUTCOME: FINISHED})
            return
        trial.epoch, trial.loss = trial.epoch + 1, trial.loss - trial.rate
        report = {"epochs": float(trial.epoch), "step": 10 * trial.epoch, "loss": trial.loss, RUN: 0}
        decision = self.scheduler.on_trial_result(self, trial, report)
        if decision == TrialScheduler.CONTINUE:
            assert trial.status == Trial.RUNNING
            trial.is_training = True
        else:
            assert decision == TrialScheduler.NOOP

    def lose_actor(self, trial, forgive: bool):
        """The actor dies. Tune hears of it from the task that fails, so not at once where none is running."""
        trial.temporary_state.ray_actor = None
        if not trial.is_training:
            return
        trial.is_training = False
        self.scheduler.on_trial_error(self, trial)
        if forgive:
            trial.status = Trial.PENDING
            self.scheduler.on_trial_add(self, trial)
        else:
            trial.status = Trial.ERROR

    def run(self, most_steps=2000):
        for _ in range(most_steps):
            if all(trial.status in (Trial.TERMINATED, Trial.ERROR) for trial in self.trials):
                return
            self.step()
        pytest.fail(f"stuck: {[(t.index, t.status, t.epoch, t.is_training) for t in self.trials]}")


def population_of(
    num: int, at_a_time: int | None, missing: tuple[int, ...] = (), places: int | None = None, seed: int = 0
):
    """Return Tune, the trials, and what was exploited: (generation, member, donor)."""
    trials = [
        FakeTrial(index, float(index % 5) + index / 100) for index in range(num) if index not in missing
    ]
    done: list[tuple[int, int, int]] = []

    def breed(exploit: Exploit, member: Job, donor: Job, at: Place) -> Job:
        by_index = {trial.index: trial for trial in trials}
        one, other = by_index[member.index], by_index[donor.index]
        assert not one.is_training
        assert not other.is_training
        assert at.epochs == other.epoch
        assert at.step == 10 * other.epoch
        one.epoch, one.loss, one.rate = other.epoch, other.loss, other.rate * 1.1
        done.append((exploit.generation, member.index, donor.index))
        return member

    scheduler = PopulationScheduler(
        Population(range(num), 1, 0.25, seed=0),
        Clock("epochs", LOSS),
        breed,
        lambda: set(missing),
        EPOCHS,
        at_a_time,
    )
    return FakeTune(scheduler, trials, places or at_a_time or num, seed), trials, done


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 4, 8, None])
def test_what_happens_does_not_depend_on_how_many_run_at_a_time_or_who_is_faster(at_a_time):
    whole, _, expected = population_of(8, 8)
    whole.run()
    assert {generation for generation, *_ in expected} == set(range(1, EPOCHS))  # none at the end
    assert len(expected) == 2 * (EPOCHS - 1)
    for seed in range(10):
        tune, trials, done = population_of(8, at_a_time, seed=seed)
        tune.run()
        assert done == expected
        assert tune.most_active <= (at_a_time or 8)
        assert {trial.epoch for trial in trials} == {EPOCHS}


def test_members_that_all_fit_wait_inside_their_actors():
    """Only who takes over another's state starts again."""
    tune, _, done = population_of(4, 4)
    tune.run()
    assert tune.num_restarts == 4 + len(done)


@pytest.mark.parametrize("seed", range(40))
def test_nobody_waits_for_who_has_died_failed_or_never_came(seed):
    rng = random.Random(seed)
    num, at_a_time = rng.randint(2, 7), rng.choice([1, 2, 3, None])
    missing = tuple(rng.sample(range(num), rng.randint(0, num - 1)))
    tune, trials, _ = population_of(num, at_a_time, missing, seed=seed)
    for _ in range(3000):
        if all(trial.status in (Trial.TERMINATED, Trial.ERROR) for trial in trials):
            break
        alive = [trial for trial in trials if trial.temporary_state.ray_actor]
        if alive and rng.random() < 0.1:
            tune.lose_actor(rng.choice(alive), forgive=rng.random() < 0.7)
        tune.step()
    else:
        pytest.fail("stuck")


def test_whoever_waits_makes_room_where_fewer_fit_than_was_thought(monkeypatch):
    import time

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tune, trials, _ = population_of(4, 4, places=2)  # four are started, two have a place
    for _ in range(200):
        tune.step()
        now[0] += STUCK_S / 10
    assert {trial.status for trial in trials} == {Trial.TERMINATED}


def test_a_member_that_cannot_take_over_goes_on_as_it_is():
    tune, trials, _ = population_of(4, 2)
    tune.scheduler._breed = lambda *_: None
    tune.run()
    assert {trial.rate for trial in trials} == {0.0, 1.01, 2.02, 3.03}


# --- what counts as a result, and what a study remembers


class Remembered:
    """A ledger with curves: index → (step, epochs, scores)."""

    def __init__(self, curves, remaining=(), exploits=None):
        self._curves, self._remaining, self._exploits = curves, list(remaining), exploits or {}

    def curves(self):
        return self._curves

    def remaining(self):
        return self._remaining

    def exploits(self):
        return self._exploits

    def rows(self):
        return []


def asked(scheduler: StoppingScheduler, index: int, **report: float) -> str:
    return scheduler.on_trial_result(None, FakeTrial(index, 0.0), {"step": 10.0, RUN: 0, **report})


def make(config: dict, ledger: Remembered, objectives=LOSS) -> Any:
    return make_scheduler(SchedulerConfig.model_validate(config), objectives, 9.0, ledger, lambda s: None, {})


def test_only_evaluations_of_the_first_seed_count_and_only_our_own_time():
    scheduler = make({"name": "asha"}, Remembered({}))
    assert asked(scheduler, 0, epochs=1.0, loss=1.0, training_iteration=9) == "CONTINUE"
    for report in (
        {"epochs": 1.0, "loss": 5.0, RUN: 1},
        {"epochs": 1.0},
        {"epochs": 1.0, "loss": 5.0, OUTCOME: FINISHED},
        {"epochs": 0.5, "loss": 5.0, "training_iteration": 9},
    ):
        assert asked(scheduler, 1, **report) == "CONTINUE"
    assert asked(scheduler, 1, epochs=1.0, loss=5.0) == "STOP"
    in_steps = make({"name": "asha", "unit": "steps", "grace_steps": 20}, Remembered({}))
    assert asked(in_steps, 0, epochs=50.0, loss=1.0) == "CONTINUE"
    assert isinstance(in_steps.policy, Asha)
    assert in_steps.policy.rungs == {}


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_a_continued_search_knows_the_rungs_of_the_one_before(name):
    """Half of a stream, a kill, the other half: what is decided is what an uninterrupted search decides."""
    config = {"name": name, "reduction_factor": 2.0}
    rng = random.Random(1)
    reports = [(i, float(e), rng.random() + i / 6) for e in range(1, 10) for i in range(12)]

    def said(scheduler, some) -> list[str]:
        return [asked(scheduler, i, epochs=e, loss=loss) for i, e, loss in some]

    whole = said(make(config, Remembered({})), reports)
    half = len(reports) // 2 + 1
    curves: dict[int, list] = {}
    for index, epochs, loss in reports[:half]:
        curves.setdefault(index, []).append((10 * epochs, epochs, (loss,)))
    again = make(config, Remembered(curves))
    assert said(again, reports[half:]) == whole[half:]
    assert "STOP" in whole[half:]
    assert said(again, reports[:half]) == ["CONTINUE"] * half  # a resumed trial repeats no rung


def test_higher_is_better_where_the_mode_says_so():
    best = (ObjectiveConfig(metric="auroc", mode="max"), ObjectiveConfig(metric="loss", mode="min"))
    scheduler = make({"name": "asha"}, Remembered({}), best)
    assert asked(scheduler, 0, epochs=1.0, auroc=0.9, loss=1.0) == "CONTINUE"
    assert asked(scheduler, 1, epochs=1.0, auroc=0.8, loss=2.0) == "STOP"
    assert asked(scheduler, 2, epochs=1.0, auroc=0.95, loss=0.5) == "CONTINUE"
    assert make({"name": "none"}, Remembered({})) is None


def cut_short(folder: Path, losses: list[float], saved: int) -> FakeTrial:
    """Return a member whose log has these losses by epoch, and whose newest checkpoint is of `saved`."""
    run = RunFolder(folder)
    write_checkpoint(run.checkpoints, 10 * saved)
    for epoch, loss in enumerate(losses, 1):
        run.log({"kind": "step", "step": 10 * epoch})
        run.log({"kind": "epoch", "epochs": epoch, "step": 10 * epoch, "loss": loss})
    trial = FakeTrial(int(folder.name), 0.0)
    trial.config = {"job": Job(trial.index, (Run(folder, None),), "inline")}
    return trial


def write_checkpoint(folder: Path, step: int) -> None:
    taken = snapshot(step, {"model": {"w": torch.ones(1)}}, {}, {})
    checkpoint.write(folder, taken)


@pytest.mark.parametrize(
    ("saved", "noted", "due", "released"),
    [
        ((2, 2), 1, True, 1),  # killed before it was decided who goes on from whom
        ((2, 2), 2, False, 2),  # and after that
        ((2, 1), 1, False, 1),  # one has logged an epoch that it must train again
        (
            (3, 2),
            0,
            True,
            2,
        ),  # one has saved an epoch that nobody heard of: it was let go from the one before
    ],
)
def test_a_continued_population_stands_where_its_checkpoints_do(tmp_path, saved, noted, due, released):
    exploits = {1: [{"generation": generation} for generation in range(1, noted + 1)]}
    scheduler = make({"name": "pbt"}, Remembered({}, remaining=[0, 1], exploits=exploits))
    for index, epoch in enumerate(saved):
        scheduler.on_trial_add(None, cut_short(tmp_path / str(index), [5.0, 4.0 + index, 3.0], epoch))
    population = scheduler.population
    assert population.times == {0: saved[0], 1: saved[1]}
    assert population.released == released
    assert population.is_due() == (due and min(saved) > released)


def test_a_trial_that_had_saved_what_nobody_heard_of_is_at_its_rung(tmp_path):
    """The study knows epoch 1; the run goes on from epoch 3, and is at the rung of epoch 3 already."""
    scheduler = make({"name": "asha"}, Remembered({7: [(10.0, 1.0, (5.0,))]}))
    scheduler.on_trial_add(None, cut_short(tmp_path / "7", [5.0, 4.0, 3.0, 2.0], saved=3))
    assert scheduler.policy.rungs == {0: {7: (5.0,)}, 1: {7: (3.0,)}}
