"""What a stopping policy is told (`Result`) and answers (`Decision`), and who of several trials is better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Scores = tuple[float, ...]  # one per objective, smaller is better
Standing = tuple[int, float]  # front and crowding, smaller is better; equal ones are as good as each other
TOLERANCE = 1e-9  # relative: epochs are sums of parts


@dataclass(frozen=True)
class Result:
    """One evaluation of a trial: its index, the time that it has trained (epochs or updates), its scores."""

    index: int
    time: float
    scores: Scores


class Decision(Enum):
    """What is to happen with the trial of a result."""

    CONTINUE = "continue"
    STOP = "stop"


class StoppingPolicy(Protocol):
    """Decides on each result; keeps what it needs of those before."""

    def decide(self, result: Result) -> Decision:
        """Take a result; one that repeats what was told before is CONTINUE."""
        ...


def reaches(time: float, milestone: float) -> bool:
    """Return whether a time is at or after a milestone, rounding forgiven."""
    return time >= milestone * (1 - TOLERANCE)


def comparable(scores: Sequence[float]) -> Scores:
    """Return the scores, or +inf everywhere when one of them is no finite number: the worst there is."""
    return tuple(scores) if all(map(math.isfinite, scores)) else (math.inf,) * len(scores)


def standings(population: Sequence[Scores]) -> list[Standing]:
    """Return each member's (front, −crowding distance): by non-dominated rank, ties by crowding distance, as
    NSGA-II compares (Deb et al. 2002, doi:10.1109/4235.996017). The same scores have the same standing.

    With one objective the fronts are its values in order, and nothing else counts.
    """
    if not population:
        return []
    different, which = np.unique(
        np.array([comparable(scores) for scores in population]), axis=0, return_inverse=True
    )
    fronts = _fronts(different)
    crowding = _crowding(different, fronts)
    return [(int(fronts[i]), float(-crowding[i])) for i in which.reshape(-1)]


def _fronts(points_NM: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each different point's front, 0 for those that none dominates, [N]."""
    if points_NM.shape[1] == 1:
        return np.arange(len(points_NM))  # np.unique has sorted them
    # Different points: what is nowhere worse is somewhere better.
    dominates_NN = np.logical_and.reduce(points_NM[:, None] <= points_NM[None], axis=2)
    np.fill_diagonal(dominates_NN, val=False)
    fronts = np.full(len(points_NM), -1)
    front = 0
    while (left := fronts < 0).any():
        fronts[left & ~np.logical_or.reduce(dominates_NN[left], axis=0)] = front
        front += 1
    return fronts


def _crowding(points_NM: NDArray[np.float64], fronts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each point's crowding distance within its front, [N]; the ends of a front have inf."""
    distances = np.zeros(len(points_NM))
    if points_NM.shape[1] == 1:
        return distances
    for front in np.unique(fronts):
        members = np.flatnonzero(fronts == front)
        for values in points_NM[members].T:
            order = members[np.argsort(values, kind="stable")]
            ordered = np.sort(values)
            distances[order[[0, -1]]] = np.inf
            if len(order) > 2 and ordered[-1] > ordered[0]:
                distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distances
