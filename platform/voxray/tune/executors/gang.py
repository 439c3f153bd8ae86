"""The gang executor: several workers in the bundles of the trial's placement group, joined in one process
group.

They are started once and train trial after trial, as the trial's actor is reused.
"""

# Ray annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from voxray.train.control import Control, Stopped
from voxray.train.fit_context import Report
from voxray.tune.executors.failure import Failure, TrainingFailedError, WorkerDiedError
from voxray.tune.executors.lockstep import Lockstep, Numbers
from voxray.tune.executors.strategy import (
    POLL_S,
    STOP_WITHIN_S,
    TrainFunction,
    hide_gpus,
    train_in_process,
)
from voxray.tune.job import Run

JOIN_WITHIN_S = 120.0
# When one worker has ended, the others end too within this, or wait for it in a collective for ever.
OTHERS_WITHIN_S = 2.0


@dataclass(frozen=True)
class Turn:
    """What came of letting a member go on: a report, its end, or why it ended."""

    numbers: Numbers | None = None
    failure: Failure | None = None
    was_stopped: bool = False


class Member:
    """One worker of a gang: an actor. Its methods are called from several threads."""

    def __init__(self, train: TrainFunction, resources: Mapping[str, float]) -> None:
        """Take what trains, and what the worker has reserved."""
        hide_gpus(resources)
        self._train = train
        self._lockstep: Lockstep | None = None
        self._store: Any = None

    def open_store(self, num_workers: int) -> tuple[str, int]:
        """On rank 0: begin the store through which the workers find each other; return its address."""
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, num_workers, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def join(self, rank: int, num_workers: int, address: tuple[str, int], backend: str) -> None:
        """Join the process group."""
        import torch
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        if rank:
            self._store = TCPStore(*address, num_workers, is_master=False)
        torch.distributed.init_process_group(
            backend,
            store=self._store,
            rank=rank,
            world_size=num_workers,
            timeout=timedelta(minutes=30),  # Ray Train's
        )

    def begin(self, run: Run) -> None:
        """Prepare to train a run."""
        self._lockstep = Lockstep(lambda report, control: train_in_process(self._train, run, report, control))

    def next(self) -> Turn:
        """Go on to the next report, or to the end."""
        assert self._lockstep
        try:
            return Turn(self._lockstep.next())
        except Stopped:
            return Turn(was_stopped=True)
        except TrainingFailedError as error:
            return Turn(failure=error.failure)

    def ask_to_stop(self) -> None:
        """Let the training end at an update on which all workers agree."""
        assert self._lockstep
        self._lockstep.ask_to_stop()

    def stop(self) -> None:
        """End the training where it waits in its report."""
        assert self._lockstep
        self._lockstep.stop()


class Gang:
    """Trains with the workers of a gang, from the trial's actor."""

    def __init__(self, train: TrainFunction, worker: Mapping[str, float]) -> None:
        """Take what trains, and what each worker has reserved."""
        self._train, self._worker = train, worker
        self._members: list[Any] = []

    def train(self, run: Run, report: Report, control: Control) -> None:
        """Train on all workers in step; rank 0's numbers are reported."""
        workers = run.config.scale.num_workers
        assert isinstance(workers, int)
        if len(self._members) != workers:
            self.close()
            self._start(workers)
        try:
            _of_all([member.begin.remote(run) for member in self._members])
            while (numbers := self._next(control)) is not None:
                report(numbers)
        except Stopped:
            self._stop()
            raise
        except RayActorError as error:
            self.close()
            raise WorkerDiedError(str(error)) from None

    def close(self) -> None:
        """End the workers; the placement group is Tune's."""
        for member in self._members:
            ray.kill(member)
        self._members = []

    def _start(self, num_workers: int) -> None:
        """Start the workers, each in its bundle, and join them."""
        group = get_current_placement_group()
        assert group is not None
        more = {name: amount for name, amount in self._worker.items() if name not in ("CPU", "GPU")}
        gpus = self._worker.get("GPU", 0)
        actor = ray.remote(Member)
        self._members = [
            actor.options(
                num_cpus=self._worker.get("CPU", 0),
                num_gpus=gpus,
                resources=more,
                max_concurrency=2,  # `ask_to_stop` while `next` waits
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
            ).remote(self._train, self._worker)
            for index in range(num_workers)
        ]
        if num_workers == 1:
            return
        # NCCL refuses two workers on one GPU.
        backend = "nccl" if gpus >= 1 else "gloo"
        try:
            address = ray.get(self._members[0].open_store.remote(num_workers), timeout=JOIN_WITHIN_S)
            joined = [
                member.join.remote(rank, num_workers, address, backend)
                for rank, member in enumerate(self._members)
            ]
            ray.get(joined, timeout=JOIN_WITHIN_S)
        except (RayActorError, GetTimeoutError) as error:
            self.close()
            raise WorkerDiedError(f"the {num_workers} workers did not find each other: {error}") from None

    def _next(self, control: Control) -> Numbers | None:
        """Let all go on to their next report; return that of rank 0, or None when all have ended.

        Raises Stopped, TrainingFailedError (the gang is kept where all failed alike), or RayActorError.
        """
        refs = [member.next.remote() for member in self._members]
        turns = self._wait(refs, control)
        failures = [turn.failure for turn in turns if turn and turn.failure]
        if failures:
            alike = len(failures) == len(turns) and len({failure.reason for failure in failures}) == 1
            if not alike or failures[0].wants_retry:
                self.close()
            raise TrainingFailedError(next((f for f in failures if not f.is_consequence), failures[0]))
        first = turns[0]
        assert first is not None
        if first.was_stopped:
            raise Stopped
        return first.numbers

    def _wait(self, refs: list[Any], control: Control) -> list[Turn | None]:
        """Return what came of each; None for one that waits for a worker which has ended.

        Raises RayActorError when one has died.
        """
        pending, is_asked, until = refs, False, None
        while pending:
            _, pending = ray.wait(refs, num_returns=len(refs), timeout=POLL_S)
            if not pending:
                break
            if control.should_stop() and not is_asked:
                is_asked = True
                _of_all([member.ask_to_stop.remote() for member in self._members])
            ended: list[Turn] = [ray.get(ref) for ref in refs if ref not in pending]  # pyright: ignore[reportAssignmentType]
            if until is None and any(turn.numbers is None for turn in ended):
                until = time.monotonic() + OTHERS_WITHIN_S
            if until is not None and time.monotonic() > until:
                break
        return [None if ref in pending else ray.get(ref) for ref in refs]

    def _stop(self) -> None:
        """End the training of all, which wait in their reports or have ended; keep the workers."""
        if not self._members:
            return
        try:
            ray.get([member.stop.remote() for member in self._members], timeout=STOP_WITHIN_S)
        except (RayActorError, GetTimeoutError):
            self.close()


def _of_all(refs: list[Any]) -> None:
    """Wait for calls that return at once. Raises RayActorError when a worker has died."""
    with contextlib.suppress(GetTimeoutError):
        ray.get(refs, timeout=STOP_WITHIN_S)
