"""Area under the ROC curve by rank statistics, weighted.

Shapes: N rows, K classes, R resamples.
"""

import torch

from voxray.metrics.ranking import Ranking, per_class, ranking


def auroc(labels_N: torch.Tensor, scores_N: torch.Tensor, weights_RN: torch.Tensor) -> torch.Tensor:
    """Return [R] areas for binary `labels_N` (0/1, no NaN), one per row of weights; NaN where a class is
    missing.

    Equal to scikit-learn's `roc_auc_score(..., sample_weight=...)`.
    """
    return auroc_of(ranking(labels_N, scores_N, weights_RN.T))


def auroc_of(ranked: Ranking) -> torch.Tensor:
    """Return [R], the probability that a positive outranks a negative, ties counting one half (Hanley and
    McNeil 1982).
    """
    wins_R = (ranked.positive_SR * (ranked.below_SR + 0.5 * ranked.tied_SR)).sum(0)
    pairs_R = ranked.positive_SR.sum(0) * ranked.negatives_R
    return torch.where(pairs_R > 0, wins_R / pairs_R, torch.nan)


def auroc_per_class(
    labels_NK: torch.Tensor, scores_NK: torch.Tensor, weights_RN: torch.Tensor | None = None
) -> torch.Tensor:
    """Return [R, K] areas (R = 1 without weights). NaN labels are left out; an undefined class is NaN, never
    0.

    torchmetrics' macro average counts an undefined class as 0, which is why the mean is taken over the
    defined ones.
    """
    return per_class([auroc_of], labels_NK, scores_NK, weights_RN)[0]
