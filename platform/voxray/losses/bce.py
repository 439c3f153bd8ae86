"""Binary cross-entropy with unknown labels."""

import torch
from torch.nn import functional as F


def bce(logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
    """Return the elementwise loss [B, K] for targets in [0, 1]; the caller leaves out unknown entries."""
    return F.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none")
