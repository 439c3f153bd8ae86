"""Items made in order by background threads that stay a few ahead of who takes them. No Ray."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from concurrent.futures import TimeoutError as Late
from typing import Generic, Protocol, Self, TypeVar

from voxray.data.plan import Window

T = TypeVar("T")
SLOW_S = 30.0  # waiting longer for one item is told
log = logging.getLogger("voxray")


class Reading(Protocol):
    """An epoch's windows, in order, on their way to who iterates over it."""

    @property
    def num_ahead(self) -> int:
        """Windows that are read or being read while one is used."""
        ...

    @property
    def left(self) -> int:
        """Windows that were not delivered yet."""
        ...

    def begin(self, num: int) -> None:
        """Begin to read the first `num` windows, or all if there are fewer, without waiting."""
        ...

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the windows that are left."""
        ...

    def close(self) -> None:
        """Give up what was begun and not delivered; no thread or task of it is at work afterwards."""
        ...


class Ahead(Generic[T]):
    """The items make(0) … make(num - 1), of which `pool` makes up to `num_ahead` while one is used.

    An item's exception is raised in its place. A pool's threads may serve several, one after the other.
    """

    def __init__(self, make: Callable[[int], T], num: int, num_ahead: int, pool: Executor) -> None:
        """Begin with nothing made."""
        self.num_ahead, self.left = num_ahead, num
        self._make, self._num, self._pool = make, num, pool
        self._begun = 0
        self._pending: deque[Future[T]] = deque()

    def begin(self, num: int) -> None:
        """Begin to make the first `num` items, without waiting."""
        while self._begun < min(num, self._num):
            self._pending.append(self._pool.submit(self._make, self._begun))
            self._begun += 1

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Return the next item, when it is made."""
        if self.left == 0:
            raise StopIteration
        index = self._num - self.left
        self.begin(index + 1 + self.num_ahead)
        item = waited_for(self._pending.popleft(), index)
        self.left -= 1
        return item

    def close(self) -> None:
        """Make no further item; wait for those that are being made."""
        self._begun = self._num
        while self._pending:
            item = self._pending.pop()
            if not item.cancel():
                wait([item])


def waited_for(item: "Future[T]", index: int) -> T:
    """Return what was made; where that takes long, tell."""
    while True:
        try:
            return item.result(timeout=SLOW_S)
        except Late:
            if item.done():
                raise
            log.warning("batch %d has been read for %.0f s: the dataset's storage is slow", index, SLOW_S)
