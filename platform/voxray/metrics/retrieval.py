"""Retrieval by cosine: at which rank a query finds its partner in a gallery.

Shapes: N queries, S stimuli, G of them in a gallery, D features.
"""

import hashlib
from collections.abc import Sequence

import torch

BLOCK_BYTES = 256 << 20  # similarities that are held at a time


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


def ranks(query_ND: torch.Tensor, gallery_GD: torch.Tensor, truth_N: torch.Tensor) -> torch.Tensor:
    """Return the rank of each query's truth among the gallery's unit rows, float64 [N], 1 the best.

    Of equal similarities each has their mean rank, so that a constant guess is at chance. `truth_N` are rows
    of the gallery.
    """
    step = max(1, BLOCK_BYTES // (4 * len(gallery_GD)))
    found: list[torch.Tensor] = []
    for query_nD, truth_n in zip(query_ND.split(step), truth_N.split(step), strict=True):
        similarity_nG = query_nD @ gallery_GD.T
        own_n1 = similarity_nG.gather(1, truth_n[:, None])
        above_n = (similarity_nG > own_n1).sum(1)
        level_n = (similarity_nG == own_n1).sum(1) - 1
        found.append(1 + above_n.double() + level_n.double() / 2)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def gallery_ranks(
    query_ND: torch.Tensor, target_SD: torch.Tensor, stimulus_N: torch.Tensor, gallery_S: torch.Tensor
) -> torch.Tensor:
    """Return each query's rank in its stimulus' gallery, float64 [N]; NaN for stimuli that are in none.

    `stimulus_N` are rows of `target_SD`, `gallery_S` is what `galleries` gave.
    """
    found_N = torch.full((len(query_ND),), torch.nan, dtype=torch.float64)
    for gallery in range(int(gallery_S.max()) + 1 if len(gallery_S) else 0):
        members = (gallery_S == gallery).nonzero()[:, 0]
        place_S = torch.full_like(gallery_S, -1)
        place_S[members] = torch.arange(len(members))
        asked = (place_S[stimulus_N] >= 0).nonzero()[:, 0]
        found_N[asked] = ranks(query_ND[asked], target_SD[members], place_S[stimulus_N[asked]])
    return found_N


def two_way(rank_N: torch.Tensor, size: int) -> torch.Tensor:
    """Return two-way identification [N]: the share of the gallery's other rows that are less similar to the
    query than its truth is, equal ones counting one half.
    """
    return (size - rank_N) / max(1, size - 1)
