"""Area under the ROC curve by rank statistics, weighted, so that one sort serves a thousand bootstrap
resamples.

Shapes: N rows, K classes, R resamples, G groups of tied scores.
"""

import torch


def auroc(labels_N: torch.Tensor, scores_N: torch.Tensor, weights_RN: torch.Tensor) -> torch.Tensor:
    """Return [R] areas for binary `labels_N` (0/1, no NaN), one per row of weights; NaN where a class is
    missing.

    The probability that a positive outranks a negative, ties counting one half (Hanley and McNeil 1982); a
    weight is how often a row was drawn. Equal to scikit-learn's `roc_auc_score(..., sample_weight=...)`.
    """
    weights_RN = weights_RN.double()
    _, tie_N = torch.unique(scores_N, return_inverse=True)
    num_ties = int(tie_N.max()) + 1 if len(tie_N) else 0
    zeros_RG = weights_RN.new_zeros(weights_RN.shape[0], num_ties)
    positive_RG = zeros_RG.index_add(1, tie_N, weights_RN * labels_N)
    negative_RG = zeros_RG.index_add(1, tie_N, weights_RN * (1 - labels_N))
    below_RG = negative_RG.cumsum(1) - negative_RG
    wins_R = (positive_RG * (below_RG + 0.5 * negative_RG)).sum(1)
    pairs_R = positive_RG.sum(1) * negative_RG.sum(1)
    return torch.where(pairs_R > 0, wins_R / pairs_R, torch.nan)


def auroc_per_class(
    labels_NK: torch.Tensor, scores_NK: torch.Tensor, weights_RN: torch.Tensor | None = None
) -> torch.Tensor:
    """Return [R, K] areas (R = 1 without weights). NaN labels are left out; an undefined class is NaN, never
    0.

    torchmetrics' macro average counts an undefined class as 0, which is why the mean is taken over the
    defined ones.
    """
    num_rows, num_classes = labels_NK.shape
    weights_RN = torch.ones(1, num_rows) if weights_RN is None else weights_RN
    areas = []
    for k in range(num_classes):
        known_N = ~labels_NK[:, k].isnan()
        areas.append(auroc(labels_NK[known_N, k], scores_NK[known_N, k], weights_RN[:, known_N]))
    return torch.stack(areas, dim=1)
