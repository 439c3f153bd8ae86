"""What may go wrong inside a training process, and what becomes of it.

A loss or gradient that is not finite stops the run, or is left out. What ends an attempt is noted in
RUN/failures.jsonl: the same exception twice at the same update is no accident, and a third attempt would be
a waste.
"""

# torch annotates its functions in part only.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

import contextlib
import json
import time
from collections.abc import Generator
from typing import Any

import torch

from voxray.config.errors import InputError, RunError, VoxrayError
from voxray.core import collectives
from voxray.core.run_config import Stage
from voxray.train.control import Stopped
from voxray.train.fit_context import Fit
from voxray.train.gradient import Outcome
from voxray.train.micro_batches import Group
from voxray.train.run_folder import RunFolder
from voxray.train.state import TrainState

MOST_ROLLBACKS = 10


class RolledBack(Exception):  # noqa: N818 - no error: the run goes on
    """The run goes back to its last checkpoint; `place` is the update (stage, epoch, batch) to leave out."""

    def __init__(self, place: list[int]) -> None:
        """Take the place of the update that was not finite."""
        super().__init__(f"update at stage, epoch, batch {place} was not finite")
        self.place = place


class NotFiniteError(RunError):
    """Raised on all workers at the same update."""


class NonFinite:
    """Watches one epoch's updates for NaN and infinities, with the ids of the rows that made them."""

    def __init__(self, loop: Fit, stage: Stage, always: bool) -> None:
        """`always`: look at each update at once; else when `check` is called."""
        self._loop, self._stage, self._always = loop, stage, always
        self._unread: list[tuple[int, list[int], torch.Tensor | bool, tuple[list[str], ...]]] = []

    def look(self, state: TrainState, outcome: Outcome, group: Group) -> None:
        """Take an update's outcome, before the state counts it."""
        place = [state.stage, state.epoch, state.epoch_batch]
        names = tuple(batch.sample_id for batch in group.micro_batches)
        self._unread.append((state.step, place, outcome.finite, names))
        if self._always:
            self.check(state)

    def check(self, state: TrainState) -> None:
        """Act on the first update since the last call that was not finite.

        Raises RunError (`on_nonfinite: stop`) or RolledBack.
        """
        unread, self._unread = self._unread, []
        for step, place, finite, names in unread:
            if not bool(finite):
                self._act(state, step, place, [name for batch in names for name in batch])

    def _act(self, state: TrainState, step: int, place: list[int], names: list[str]) -> None:
        loop, mode = self._loop, self._stage.training.on_nonfinite
        everyones = [name for worker in collectives.all_gather_objects(names) for name in worker]
        file = f"nonfinite-step-{step:08d}.json"
        if collectives.rank() == 0:
            record = {"step": step, "stage": place[0], "epoch": place[1], "batch": place[2]}
            text = json.dumps({**record, "sample_ids": list(dict.fromkeys(everyones))}, indent=1)
            (loop.run.path / file).write_text(text)
        what = f"the loss or its gradient is not finite at update {step} (its rows: {file} in the run)"
        if mode == "stop":
            raise NotFiniteError(
                f"{what}; lower training.learning_rate, set training.clip_grad_norm, or see "
                "training.on_nonfinite"
            )
        if mode == "rollback":
            if len(loop.to_skip) >= MOST_ROLLBACKS:
                raise NotFiniteError(
                    f"{what}, after {MOST_ROLLBACKS} rollbacks; lower training.learning_rate"
                )
            loop.note(f"{what}; going back to the last checkpoint, to leave it out")
            raise RolledBack(place)
        loop.note(f"{what}; left out")


@contextlib.contextmanager
def noted(loop: Fit) -> Generator[None]:
    """Note what ends the attempt, with its update; give up where the same came at the same update before."""
    try:
        yield
    except (RolledBack, Stopped, KeyboardInterrupt, InputError):
        raise
    except torch.OutOfMemoryError as error:
        _cut_smaller(loop, error)
    except Exception as error:
        step = loop.state.step if loop.state else -1
        before = [(each["step"], each["error"]) for each in failures(loop.run)]
        text = _text(error)
        note_failure(loop.run, collectives.rank(), step, text)
        if isinstance(error, VoxrayError) or is_lost_peer(error):
            raise
        if (step, text) in before:
            raise RunError(
                f"the same error came twice at update {step}, so it is no accident: {text}"
            ) from error
        raise


def is_lost_peer(error: BaseException) -> bool:
    """Whether another worker's end is what this one noticed: a consequence, no cause."""
    is_torchs = isinstance(error, torch.distributed.DistError)
    return is_torchs or (isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error)))


def failures(run: RunFolder) -> list[dict[str, Any]]:
    """Return what ended earlier attempts; a line that a kill cut short is left out."""
    if not run.failures_file.exists():
        return []
    found: list[dict[str, Any]] = []
    for line in run.failures_file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def note_failure(run: RunFolder, rank: int, step: int, error: str) -> None:
    """Write down what ended a worker's attempt at update `step`."""
    with run.failures_file.open("a") as file:
        file.write(json.dumps({"rank": rank, "step": step, "error": error, "time": time.time()}) + "\n")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _cut_smaller(loop: Fit, error: Exception) -> None:
    """Let the next attempt cut each micro-batch in half once more, and end this one on all workers."""
    state = loop.state
    parts = 2 * loop.run.micro_batch_parts
    stage = loop.config.resolved_stages()[state.stage if state else 0]
    rows = stage.training.batch_size // collectives.world_size()
    if parts > max(1, rows):
        raise RunError(
            f"the GPU's memory does not hold one row at a time ({_text(error)}); use a smaller model, "
            "training.precision=bf16 or scale.strategy=fsdp"
        ) from error
    loop.run.cut_micro_batches(parts)
    note_failure(loop.run, collectives.rank(), state.step if state else -1, _text(error))
    raise OutOfMemoryError(
        f"the GPU's memory is full: each micro-batch is cut into {parts} from now on"
    ) from error


class OutOfMemoryError(Exception):
    """The attempt ended for want of memory; the next one takes less at a time."""
