"""Contrastive losses of MindEye (Scotti et al. 2023, arXiv 2305.18274): BiMixCo and SoftCLIP.

Both compare unit rows from either side; logits are float32 whatever the rows are, under autocast too, as at a
temperature of 0.006 they reach ±167. Shapes: N pairs, D features.
"""

import torch
from torch.nn import functional as F


def bi_mixco(
    pred_ND: torch.Tensor,
    target_ND: torch.Tensor,
    partner_N: torch.Tensor,
    share_N: torch.Tensor,
    tau: float,
) -> torch.Tensor:
    """Return the loss [] of predictions made from a share `share_N` of their own input and the rest of row
    `partner_N`'s (Kim et al. 2020, arXiv 2010.06300): the mean of both sides' cross-entropies.

    A row mixed with itself keeps a share of 1. With shares of 1 it is the symmetric InfoNCE loss.
    """
    logits_NN = _cosines(pred_ND, target_ND) / tau
    probs_NN = torch.diag(share_N.to(logits_NN))
    probs_NN = probs_NN.scatter_add(1, partner_N[:, None], (1 - share_N.to(logits_NN))[:, None])
    return (F.cross_entropy(logits_NN, probs_NN) + F.cross_entropy(logits_NN.T, probs_NN.T)) / 2


def soft_clip(pred_ND: torch.Tensor, target_ND: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the loss [] whose truth is how alike the targets are: the softmax of their own cosines over
    `tau`. Its least value is that distribution's entropy, not 0.
    """
    soft_NN = (_cosines(target_ND, target_ND) / tau).softmax(-1)
    logits_NN = _cosines(pred_ND, target_ND) / tau
    return (F.cross_entropy(logits_NN, soft_NN) + F.cross_entropy(logits_NN.T, soft_NN)) / 2


def _cosines(one_ND: torch.Tensor, other_ND: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(one_ND.dtype, torch.float32)
    with torch.autocast(one_ND.device.type, enabled=False):
        one_ND, other_ND = (F.normalize(rows.to(wide), dim=-1) for rows in (one_ND, other_ND))
        return one_ND @ other_ND.T
