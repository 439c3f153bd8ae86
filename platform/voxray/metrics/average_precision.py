"""Average precision (the area under the precision-recall steps), weighted.

Shapes: N rows, K classes, R resamples, S different scores that positives have.
"""

import torch

from voxray.metrics.ranking import Ranking, per_class, ranking


def average_precision(
    labels_N: torch.Tensor, scores_N: torch.Tensor, weights_RN: torch.Tensor
) -> torch.Tensor:
    """Return [R] average precisions for binary `labels_N` (0/1, no NaN), one per row of weights; NaN where
    there is no positive.

    Equal to scikit-learn's `average_precision_score(..., sample_weight=...)`, which gives 0 there.
    """
    return average_precision_of(ranking(labels_N, scores_N, weights_RN.T))


def average_precision_of(ranked: Ranking) -> torch.Tensor:
    """Return [R], Σ (recall − recall before) · precision over the different scores, highest first; rows with
    one score come together. A ranking by chance gives the share of positives.
    """
    true_SR = ranked.positive_SR.flip(0).cumsum(0).flip(0)
    false_SR = ranked.negatives_R - ranked.below_SR
    # Where nothing was drawn at or above a score, its precision is 0/0 and its weight 0.
    precision_SR = torch.where(true_SR > 0, true_SR / (true_SR + false_SR), 0.0)
    positives_R = ranked.positive_SR.sum(0)
    return torch.where(positives_R > 0, (ranked.positive_SR * precision_SR).sum(0) / positives_R, torch.nan)


def average_precision_per_class(
    labels_NK: torch.Tensor, scores_NK: torch.Tensor, weights_RN: torch.Tensor | None = None
) -> torch.Tensor:
    """Return [R, K] average precisions (R = 1 without weights). NaN labels are left out; a class without
    positives is NaN, never 0.
    """
    return per_class([average_precision_of], labels_NK, scores_NK, weights_RN)[0]
