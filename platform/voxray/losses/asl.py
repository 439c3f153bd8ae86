"""The asymmetric loss for labels that are mostly absent: easy absent labels weigh little, very easy ones
nothing.
"""

import math

import torch
from torch.nn import functional as F

EPS = 1e-8  # probabilities below it count as it, as in the definition


def asl(
    logits_BK: torch.Tensor,
    targets_BK: torch.Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    focal_gradient: bool = False,
) -> torch.Tensor:
    """Return the elementwise loss [B, K] for targets 0 or 1; the caller leaves out unknown entries.

    −[y (1−p)^γ₊ log p + (1−y) (1−p₋)^γ₋ log p₋] with p = sigmoid(logit) and p₋ = min(1−p+clip, 1) (Ridnik et
    al. 2021, arXiv 2009.14119; DOMAINS.md S4.b-3). Without `focal_gradient` the weights (1−p)^γ are constants
    of the backward pass, as in the authors' training script. With both gammas and `clip` 0 it is BCE.

    It is computed in float32 at least. There 1−p itself is 0 from a logit of 17 on, so the logarithms come
    from log-sigmoids; eps then only bounds an entry's loss at −log 1e-8 = 18.4, where its gradient is 0.
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    targets_BK = targets_BK.to(logits_BK.dtype)
    log_present_BK = F.logsigmoid(logits_BK).clamp(min=math.log(EPS))
    if clip:
        log_absent_BK = (torch.sigmoid(-logits_BK) + clip).clamp(EPS, 1).log()
    else:
        log_absent_BK = F.logsigmoid(-logits_BK).clamp(min=math.log(EPS))
    with torch.set_grad_enabled(focal_gradient and torch.is_grad_enabled()):
        # From below by EPS: a power under 1 has no finite slope at 0.
        missed_BK = torch.sigmoid(-logits_BK).clamp(min=EPS) ** gamma_pos
        alarmed_BK = (torch.sigmoid(logits_BK) - clip).clamp(min=EPS) ** gamma_neg
    present_BK = targets_BK * missed_BK * log_present_BK
    return -(present_BK + (1 - targets_BK) * alarmed_BK * log_absent_BK)
