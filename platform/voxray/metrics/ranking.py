"""How positives and negatives lie along the scores: what AUROC and average precision are computed from.

One pass over the rows serves a thousand bootstrap resamples: a weight is how often a row was drawn.
Shapes: N rows, K classes, R resamples, S different scores that positives have, B = 3 S + 1 buckets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# Resamples that are looked at together: 128 × 100,000 rows are 100 MB of weights.
BLOCK = 128


@dataclass(frozen=True)
class Ranking:
    """Weights at the scores that positives have, lowest first, in float64."""

    positive_SR: torch.Tensor  # positives with the score
    tied_SR: torch.Tensor  # negatives with the same score
    below_SR: torch.Tensor  # negatives with a lower one
    negatives_R: torch.Tensor  # all negatives


Measure = Callable[[Ranking], torch.Tensor]  # → [R], NaN where undefined


def ranking(labels_N: torch.Tensor, scores_N: torch.Tensor, weights_NR: torch.Tensor) -> Ranking:
    """Return how binary `labels_N` (0/1, no NaN) lie along their scores, for each column of weights.

    Scores that are not numbers have no order: with one of them nothing is ranked, and measures are NaN.
    """
    if scores_N.isnan().any():
        labels_N, scores_N, weights_NR = labels_N[:0], scores_N[:0], weights_NR[:0]
    is_positive_N = labels_N > 0
    score_S = scores_N[is_positive_N].unique()
    scores_N = scores_N.contiguous()
    place_N = torch.searchsorted(score_S, scores_N)
    is_tied_N = torch.searchsorted(score_S, scores_N, right=True) > place_N
    kind_N = torch.where(is_positive_N, 2, is_tied_N.long())
    sums_BR = weights_NR.new_zeros(3 * len(score_S) + 1, weights_NR.shape[1], dtype=torch.float64)
    sums_BR.index_add_(0, 3 * place_N + kind_N, weights_NR.double())
    # Negatives between the score before and this one, negatives and positives with this one.
    between_SR, tied_SR, positive_SR = (sums_BR[kind:-1:3] for kind in range(3))
    up_to_SR = (between_SR + tied_SR).cumsum(0)
    negatives_R = between_SR.sum(0) + tied_SR.sum(0) + sums_BR[-1]
    return Ranking(positive_SR, tied_SR, up_to_SR - tied_SR, negatives_R)


def per_class(
    measures: Sequence[Measure],
    labels_NK: torch.Tensor,
    scores_NK: torch.Tensor,
    weights_RN: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Return [R, K] of each measure (R = 1 without weights). NaN labels are left out."""
    weights_RN = torch.ones(1, len(labels_NK)) if weights_RN is None else weights_RN
    blocks = [
        [
            torch.stack(values, 1)
            for values in zip(*_of_block(measures, labels_NK, scores_NK, block_rN), strict=True)
        ]
        for block_rN in weights_RN.split(BLOCK)
    ]
    return [torch.cat(values) for values in zip(*blocks, strict=True)]


def _of_block(
    measures: Sequence[Measure], labels_NK: torch.Tensor, scores_NK: torch.Tensor, weights_rN: torch.Tensor
) -> list[list[torch.Tensor]]:
    """Return each class's measures, [r] each, of a block of r resamples."""
    weights_Nr = weights_rN.T.double().contiguous()
    values: list[list[torch.Tensor]] = []
    for labels_N, scores_N in zip(labels_NK.unbind(1), scores_NK.unbind(1), strict=True):
        known_N = ~labels_N.isnan()
        known_Nr = weights_Nr if known_N.all() else weights_Nr[known_N]
        ranked = ranking(labels_N[known_N], scores_N[known_N], known_Nr)
        values.append([measure(ranked) for measure in measures])
    return values
