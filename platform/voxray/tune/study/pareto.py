"""Which points no other point beats in every objective."""

from collections.abc import Sequence


def non_dominated(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of the points [N][objectives], smaller is better, that no point dominates.

    One dominates another that is nowhere worse and somewhere better; equal points do not.
    """
    return [place for place, own in enumerate(costs) if not any(_dominates(other, own) for other in costs)]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
