"""What a decision at a probability of 0.5 gets right. Unknown labels (NaN) are left out.

Shapes: N rows, K classes.
"""

import torch

THRESHOLD = 0.5


def accuracy(labels_NK: torch.Tensor, scores_NK: torch.Tensor) -> float:
    """Return the share of known labels that `score > 0.5` agrees with; NaN where none is known.

    fastai's `accuracy_multi`. With rare findings it is high for a model that never finds one.
    """
    known_NK = ~labels_NK.isnan()
    agrees_NK = (scores_NK > THRESHOLD) == (labels_NK > THRESHOLD)
    return float(agrees_NK[known_NK].double().mean())


def macro_f1(labels_NK: torch.Tensor, scores_NK: torch.Tensor) -> float:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN) at `score > 0.5`.

    A class that neither has nor gets a positive is left out, as by scikit-learn's `f1_score` with
    `average='macro', zero_division=nan`.
    """
    known_NK = ~labels_NK.isnan()
    present_NK, found_NK = (labels_NK > THRESHOLD) & known_NK, (scores_NK > THRESHOLD) & known_NK
    twice_right_K = 2 * (present_NK & found_NK).sum(0).double()
    return float((twice_right_K / (present_NK.sum(0) + found_NK.sum(0))).nanmean())
