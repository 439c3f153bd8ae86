"""Population based training (PBT; Jaderberg et al., arXiv:1711.09846): the worst go on from the best.

Here a population is synchronous: at each multiple of `every` its members wait until all have got there, and
truncation selection is made once. So what is decided depends on the results alone, neither on how many run at
a time nor on who was faster, and members of the same age are compared.
"""

import hashlib
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from voxray.tune.schedulers.policy import TOLERANCE, Result, Scores, comparable, standings


@dataclass(frozen=True)
class Exploit:
    """Member `index` goes on from the state of `donor`, with values near the donor's."""

    index: int
    donor: int
    generation: int


class Population:
    """Who is alive, how far each has got, what happens when all have got to a generation's end.

    A member that has failed, or has trained to its end, leaves and is not waited for. Who is alone never
    waits.
    """

    def __init__(
        self, members: Iterable[int], every: float, quantile: float, seed: int, released: int = 0
    ) -> None:
        """`members` are their indices; a generation is `every` long, in the results' time. `released` is the
        last generation after which somebody is known to have taken over another's state.
        """
        self.every, self.quantile, self.seed = every, quantile, seed
        self.alive = set(members)
        self.released = released  # generations that have ended
        self.times: dict[int, float] = {}
        self._scores: dict[int, Scores] = {}

    def generation(self, index: int) -> int:
        """Return how many generations a member has trained through."""
        return math.floor(self.times.get(index, 0.0) / self.every * (1 + TOLERANCE) + TOLERANCE)

    def take(self, result: Result) -> None:
        """Note how far a member has got, and how well it does."""
        self.times[result.index], self._scores[result.index] = result.time, comparable(result.scores)

    def waits(self, index: int) -> bool:
        """Return whether a member has to wait for others."""
        return index in self.alive and len(self.alive) > 1 and self.generation(index) > self.released

    def leave(self, index: int) -> None:
        """Wait for a member no more."""
        self.alive.discard(index)

    def join(self, index: int) -> None:
        """Count a member as alive (again)."""
        self.alive.add(index)

    def was_let_go(self, index: int) -> None:
        """Take note, in a search that is continued, that the generation before a member's had ended."""
        self.released = max(self.released, self.generation(index) - 1)

    def is_due(self) -> bool:
        """Return whether all that are alive have got to the end of a generation."""
        return bool(self.alive) and min(map(self.generation, self.alive)) > self.released

    def select(self) -> list[Exploit]:
        """End the generation, which is due: return who goes on from whom.

        Of n members the worst k = min(⌈n · quantile⌉, ⌊n / 2⌋) each take one of the best k at random, seeded
        by hash(seed, index, generation); nobody takes one that is no better, or whose score is no number.
        """
        self.released = generation = min(map(self.generation, self.alive))
        members = sorted(self.alive)
        standing = dict(zip(members, standings([self._scores[index] for index in members]), strict=True))
        order = sorted(members, key=lambda index: (standing[index], index))
        k = min(math.ceil(len(order) * self.quantile - TOLERANCE), len(order) // 2)
        best = [index for index in order[:k] if all(map(math.isfinite, self._scores[index]))]
        exploits: list[Exploit] = []
        for index in sorted(order[len(order) - k :]):
            if not best:
                break
            donor = best[int(random_of(self.seed, index, generation, "donor").random() * len(best))]
            if standing[donor] < standing[index]:
                exploits.append(Exploit(index, donor, generation))
        for exploit in exploits:
            self.times[exploit.index] = self.times[exploit.donor]
            self._scores[exploit.index] = self._scores[exploit.donor]
        return exploits


def random_of(seed: int, index: int, generation: int, what: str) -> random.Random:
    """Return the generator of one choice of one member at one generation."""
    text = f"{seed}/{index}/{generation}/{what}"
    return random.Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little"))
