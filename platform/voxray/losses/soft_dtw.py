"""Soft dynamic time warping: the soft minimum of the cost over all monotone alignments of two sequences.

Shapes: B pairs, N and M steps, D features.
"""

import torch

_NOWHERE = 1e10  # the cost of a place that no alignment goes through


def soft_dtw(
    cost_BNM: torch.Tensor, num_n_B: torch.Tensor, num_m_B: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Return soft-DTW [B] of pairwise costs, of the first num_n_B × num_m_B (at least 1 × 1) of each pair.

    r(i, j) = cost(i, j) + softmin_gamma(r(i−1, j), r(i, j−1), r(i−1, j−1)) with softmin(a) =
    −gamma · log Σ exp(−a / gamma), so it may be below zero (Cuturi & Blondel 2017, arXiv 1703.01541). The
    recursion goes over anti-diagonals, N + M steps in all, in float32 at least.
    """
    cost_BNM = cost_BNM.to(torch.promote_types(cost_BNM.dtype, torch.float32))
    num_pairs, n, m = cost_BNM.shape
    diagonals = _skewed(cost_BNM)
    before_BN = cost_BNM.new_full((num_pairs, n + 1), _NOWHERE)
    last_BN = cost_BNM.new_full((num_pairs, n + 1), _NOWHERE)
    before_BN[:, 0] = 0.0  # r(0, 0)
    ends_B = num_n_B + num_m_B - 2  # the diagonal on which a pair's last place lies
    nowhere_B1 = cost_BNM.new_full((num_pairs, 1), _NOWHERE)
    found_B = cost_BNM.new_zeros(num_pairs)
    for k in range(n + m - 1):
        least_BN = _soft_minimum(last_BN[:, :-1], last_BN[:, 1:], before_BN[:, :-1], gamma)
        now_BN = torch.cat([nowhere_B1, diagonals[k] + least_BN], dim=1)
        ends_here = ends_B == k
        at_end_B = now_BN.gather(1, num_n_B[:, None])[:, 0]
        found_B = torch.where(ends_here, at_end_B, found_B)
        before_BN, last_BN = last_BN, now_BN
    return found_B


def _skewed(cost_BNM: torch.Tensor) -> torch.Tensor:
    """Return the anti-diagonals [N + M − 1, B, N]: entry i of diagonal k is cost(i, k − i)."""
    num_pairs, n, m = cost_BNM.shape
    row_1N = torch.arange(n, device=cost_BNM.device)[None]
    column_KN = torch.arange(n + m - 1, device=cost_BNM.device)[:, None] - row_1N
    is_inside_KN = (column_KN >= 0) & (column_KN < m)
    index_BNK = column_KN.clamp(0, m - 1).T.expand(num_pairs, n, -1)
    skewed_KBN = cost_BNM.gather(2, index_BNK).permute(2, 0, 1)
    return torch.where(is_inside_KN[:, None], skewed_KBN, _NOWHERE)


def _soft_minimum(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, gamma: float) -> torch.Tensor:
    return -gamma * torch.logsumexp(torch.stack([a, b, c]) / -gamma, dim=0)
