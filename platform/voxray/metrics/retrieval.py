"""Retrieval by cosine: at which place a query finds its partner in a gallery.

Rows of a gallery that are exactly as similar as the partner come in any order with equal chance, and every
measure is its expectation over these orders: a guess that tells nothing apart is at chance.
Shapes: N queries, S stimuli, G of them in a gallery, D features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK_BYTES = 64 << 20  # similarities that are held at a time


@dataclass(frozen=True)
class Places:
    """How many rows of its gallery are more similar to a query than its truth is, and how many others are as
    similar: float64 [N], NaN for queries that ask no gallery. `size` is G.
    """

    above_N: torch.Tensor
    level_N: torch.Tensor
    size: int

    def rank(self) -> torch.Tensor:
        """Return the expected rank [N], 1 the best: of equally similar rows each has their mean rank."""
        return 1 + self.above_N + self.level_N / 2

    def recall(self, k: int) -> torch.Tensor:
        """Return the chance [N] that the truth is among the `k` most similar rows: 0 or 1 without ties."""
        return ((k - self.above_N) / (1 + self.level_N)).clamp(0, 1)

    def reciprocal_rank(self) -> torch.Tensor:
        """Return the expected 1 / rank [N]: its mean over the ranks that equally similar rows share."""
        harmonic = torch.cat([torch.zeros(1), 1 / torch.arange(1, self.size + 1)]).double().cumsum(0)
        first_N, num_N = self.above_N.nan_to_num().long(), 1 + self.level_N
        last_N = first_N + num_N.nan_to_num().long()
        found_N = (harmonic[last_N.clamp(max=self.size)] - harmonic[first_N]) / num_N
        return torch.where(self.above_N.isnan(), torch.nan, found_N)

    def two_way(self) -> torch.Tensor:
        """Return two-way identification [N]: the share of the gallery's other rows that are less similar to
        the query than its truth is, equal ones counting one half; NaN in a gallery of one.
        """
        return (self.size - self.rank()) / (self.size - 1 if self.size > 1 else torch.nan)


def galleries(stimulus_S: Sequence[str], size: int | None) -> torch.Tensor:
    """Return each stimulus' gallery, int64 [S]: floor(S / size) disjoint ones of `size` stimuli, -1 for what
    is left over; one gallery of all without a size.

    The stimuli are dealt by a hash of their names, so the order in which they come does not matter. Raises
    ValueError for fewer stimuli than `size`.
    """
    num = len(stimulus_S)
    if size is None:
        return torch.zeros(num, dtype=torch.int64)
    if num < size:
        raise ValueError(f"a gallery of {size} needs as many stimuli, and there are {num}")
    digests = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in stimulus_S]
    order = sorted(range(num), key=digests.__getitem__)
    found_S = torch.full((num,), -1, dtype=torch.int64)
    for place, stimulus in enumerate(order[: num // size * size]):
        found_S[stimulus] = place // size
    return found_S


def places(query_ND: torch.Tensor, gallery_GD: torch.Tensor, truth_N: torch.Tensor) -> Places:
    """Return where each query's truth lies among the gallery's unit rows; `truth_N` are rows of the gallery.

    A query that is not a number is as similar to one row as to another.
    """
    size = len(gallery_GD)
    step = max(1, BLOCK_BYTES // (4 * max(1, size)))
    above_N = torch.zeros(len(query_ND), dtype=torch.float64)
    below_N = torch.zeros_like(above_N)
    for start in range(0, len(query_ND), step):
        block = slice(start, start + step)
        similarity_nG = query_ND[block] @ gallery_GD.T
        own_n1 = similarity_nG.gather(1, truth_N[block, None])
        above_N[block] = (similarity_nG > own_n1).sum(1).double()
        below_N[block] = (similarity_nG < own_n1).sum(1).double()
    return Places(above_N, size - 1 - above_N - below_N, size)


def gallery_places(
    query_ND: torch.Tensor, target_SD: torch.Tensor, stimulus_N: torch.Tensor, gallery_S: torch.Tensor
) -> Places:
    """Return where each query's truth lies in its stimulus' gallery; NaN for stimuli that are in none.

    `stimulus_N` are rows of `target_SD`, `gallery_S` is what `galleries` gave.
    """
    nowhere_N = torch.full((len(query_ND),), torch.nan, dtype=torch.float64)
    found = Places(nowhere_N, nowhere_N.clone(), int((gallery_S == 0).sum()))
    for gallery in range(int(gallery_S.max()) + 1 if len(gallery_S) else 0):
        members = (gallery_S == gallery).nonzero()[:, 0]
        place_S = torch.full_like(gallery_S, -1)
        place_S[members] = torch.arange(len(members))
        asked = (place_S[stimulus_N] >= 0).nonzero()[:, 0]
        there = places(query_ND[asked], target_SD[members], place_S[stimulus_N[asked]])
        found.above_N[asked], found.level_N[asked] = there.above_N, there.level_N
    return found
