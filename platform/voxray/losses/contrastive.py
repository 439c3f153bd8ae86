"""Contrastive losses between paired rows.

Shapes: N pairs, D features.
"""

import torch
from torch.nn import functional as F


def info_nce(pred_ND: torch.Tensor, target_ND: torch.Tensor, tau: torch.Tensor | float) -> torch.Tensor:
    """Return the symmetric InfoNCE loss [] at temperature `tau`: each row is to find its partner among the
    others' by cosine, from either side (van den Oord et al. 2018; Radford et al. 2021).

    Logits are float32 whatever the rows are, under autocast too: divided by a small temperature, bfloat16
    would not tell them apart.
    """
    with torch.autocast(pred_ND.device.type, enabled=False):
        pred_ND, target_ND = F.normalize(pred_ND.float(), dim=-1), F.normalize(target_ND.float(), dim=-1)
        logits_NN = pred_ND @ target_ND.T / tau
        partner_N = torch.arange(len(logits_NN), device=logits_NN.device)
        return (F.cross_entropy(logits_NN, partner_N) + F.cross_entropy(logits_NN.T, partner_N)) / 2
