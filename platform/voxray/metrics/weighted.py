"""Means and medians under many sets of weights at once: how often a bootstrap drew each row.

Shapes: N rows, M metrics, R sets of weights.
"""

import torch

# Sets of weights that are looked at together: 64 × 100,000 rows are 50 MB in float64.
BLOCK = 64


def weighted_means(values_NM: torch.Tensor, weights_RN: torch.Tensor) -> torch.Tensor:
    """Return the mean of each column under each set of weights, float64 [R, M]; NaN where no row has weight.

    Equal to `numpy.average(..., weights=...)`.
    """
    values_NM = values_NM.double()
    blocks = [block_rN.double() for block_rN in weights_RN.split(BLOCK)]
    return torch.cat([(block_rN @ values_NM) / block_rN.sum(1, keepdim=True) for block_rN in blocks])


def weighted_medians(values_N: torch.Tensor, weights_RN: torch.Tensor) -> torch.Tensor:
    """Return the median under each set of weights, float64 [R]; NaN where no row has weight.

    For whole weights that of each value repeated so often: equal to `numpy.median(numpy.repeat(...))`.
    """
    sorted_N, order_N = values_N.double().sort()
    found: list[torch.Tensor] = []
    for block_rN in weights_RN.split(BLOCK):
        up_to_rN = block_rN[:, order_N].double().cumsum(1)
        half_r1 = up_to_rN[:, -1:] / 2
        # The two middle ones: where half of the weight is reached, and where it is passed.
        ends = [torch.searchsorted(up_to_rN, half_r1, right=right)[:, 0] for right in (False, True)]
        low_r, high_r = (sorted_N[end_r.clamp(max=len(sorted_N) - 1)] for end_r in ends)
        found.append(torch.where(half_r1[:, 0] > 0, (low_r + high_r) / 2, torch.nan))
    return torch.cat(found)
