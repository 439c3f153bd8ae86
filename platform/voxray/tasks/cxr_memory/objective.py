"""Loss and metrics of the chest X-ray task, and its augmentation. Unknown labels (NaN) count in none of them.

Shapes: B rows of a batch, N rows of a split, K labels, R resamples, H × W pixels.
"""

import torch
from torch.nn import functional as F

from voxray.core.randomness import uniform_rows
from voxray.metrics.auroc import auroc_per_class
from voxray.metrics.bootstrap import group_weights, percentile_interval

NUM_RESAMPLES = 1000
MAX_ROTATION = 10.0  # degrees, fastai's `Rotate` default, which the guide used
FLIP_PROBABILITY = 0.5


def auroc_intervals(
    labels_NK: torch.Tensor, scores_NK: torch.Tensor, group_N: torch.Tensor, seed: int
) -> dict[str, list[tuple[float, float]]]:
    """Return 95 % intervals of the mean AUROC and of each class's, by bootstrap over groups (patients)."""
    areas_RK = auroc_per_class(labels_NK, scores_NK, group_weights(group_N, NUM_RESAMPLES, seed))
    return {
        "auroc": [percentile_interval(areas_RK.nanmean(1))],
        "auroc_per_class": [percentile_interval(areas_R) for areas_R in areas_RK.unbind(1)],
    }


def augment(image_BCHW: torch.Tensor, position_B: torch.Tensor, key: int) -> torch.Tensor:
    """Return images [B, 1, H, W], each flipped left–right and turned by up to 10° with probability one half
    each.
    """
    u_B4 = uniform_rows(key, position_B, 4)
    flip_B = torch.where(u_B4[:, 0] < FLIP_PROBABILITY, -1.0, 1.0)
    degrees_B = torch.where(u_B4[:, 1] < FLIP_PROBABILITY, (2 * u_B4[:, 2] - 1) * MAX_ROTATION, 0.0)
    cos_B, sin_B = torch.cos(torch.deg2rad(degrees_B)), torch.sin(torch.deg2rad(degrees_B))
    zero_B = torch.zeros_like(cos_B)
    affine_B23 = torch.stack(
        [torch.stack([cos_B * flip_B, -sin_B, zero_B], 1), torch.stack([sin_B * flip_B, cos_B, zero_B], 1)], 1
    )
    grid_BHW2 = F.affine_grid(affine_B23, list(image_BCHW.shape), align_corners=False)
    return F.grid_sample(
        image_BCHW.float(), grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
