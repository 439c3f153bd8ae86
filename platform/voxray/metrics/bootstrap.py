"""Resampling by group: patients are drawn with replacement, and all rows of a drawn patient come with it."""

import torch


def group_weights(group_N: torch.Tensor, num_resamples: int, seed: int) -> torch.Tensor:
    """Return [R, N] weights: how often each row's group was drawn when G groups are drawn G times with
    replacement.

    `group_N` holds group indices 0 … G-1 (Efron's bootstrap with the group as the unit).
    """
    num_groups = int(group_N.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    drawn_RG = torch.randint(num_groups, (num_resamples, num_groups), generator=generator)
    counts_RG = torch.zeros(num_resamples, num_groups).scatter_add_(1, drawn_RG, torch.ones(drawn_RG.shape))
    return counts_RG[:, group_N]


def percentile_interval(values_R: torch.Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval over the resamples in which the metric is defined; NaN where it never
    is.
    """
    defined = values_R[~values_R.isnan()]
    if not len(defined):
        return (float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = torch.quantile(defined, torch.tensor([tail, 1 - tail], dtype=defined.dtype)).tolist()
    return (low, high)
