"""What reaches a training process from outside: please stop, please save; and its sign of life."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


def _never() -> bool:
    return False


def _nobody_listens() -> None:
    pass


@dataclass(frozen=True)
class Control:
    """`should_stop`: save at this update and end. `should_save`: save and go on (the node is about to go).

    `beat` is called whenever an update or an evaluated batch is done.
    """

    should_stop: Callable[[], bool] = _never
    should_save: Callable[[], bool] = _never
    beat: Callable[[], None] = _nobody_listens


@dataclass(frozen=True)
class Wishes:
    """What any worker was asked for; the same on all of them."""

    stop: bool = False
    save: bool = False


class HostNumbers:
    """Numbers of the device that the host looks at once per update.

    On a GPU it sees an update's numbers one update later, so that it never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is on its way yet."""
        self._device = device
        self._on_its_way: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def read(self, values: torch.Tensor) -> list[float] | None:
        """Return these numbers [N] (CPU), or the last update's (GPU); None where there were none yet."""
        if self._device.type != "cuda":
            return values.tolist()
        before = self._on_its_way
        copy = torch.empty_like(values, device="cpu", pin_memory=True)
        copy.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._on_its_way = copy, arrived
        if before is None:
            return None
        before[1].synchronize()
        return before[0].tolist()


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """The run was asked to stop, and has saved its state."""
