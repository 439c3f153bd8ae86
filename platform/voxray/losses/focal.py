"""The focal loss: entries that are right already weigh little."""

import torch
from torch.nn import functional as F

EPS = 1e-8  # a power under 1 has no finite slope at 0, where a certain and right entry lies


def focal(
    logits_BK: torch.Tensor, targets_BK: torch.Tensor, alpha: float = 1.0, gamma: float = 2.0
) -> torch.Tensor:
    """Return the elementwise loss [B, K] for targets 0 or 1; the caller leaves out unknown entries.

    alpha · (1 − e^−bce)^gamma · bce (Lin et al. 2017, arXiv 1708.02002; DOMAINS.md S4.b-3). `alpha` scales
    all entries alike; torchvision's `sigmoid_focal_loss`, whose alpha weighs present against absent, gives
    the same with alpha=-1 there and 1 here. It is computed in float32 at least.
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    bce_BK = F.binary_cross_entropy_with_logits(logits_BK, targets_BK.to(logits_BK.dtype), reduction="none")
    return alpha * (-torch.expm1(-bce_BK)).clamp(min=EPS) ** gamma * bce_BK
