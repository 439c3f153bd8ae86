"""Losses of the fMRI-to-CLIP task (DOMAINS.md S0.b), its augmentation and its metrics.

Shapes: B rows of a batch, N rows of a split, V voxels, D an embedding's width.
"""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import betaincinv

from voxray.core import collectives
from voxray.core.randomness import key as key_of
from voxray.core.randomness import normal_rows, uniform_rows
from voxray.losses.contrastive import info_nce
from voxray.tasks.fmri_clip.config import FmriClipDataConfig
from voxray.tasks.fmri_clip.model import unit_rows


def squared_error(pred_BD: torch.Tensor, target_BD: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
    """Return the sum [] of squared errors over the entries of valid rows."""
    return ((pred_BD.float() - target_BD.float()).square().sum(-1) * valid_B).sum()


def cosine_distance(pred_BD: torch.Tensor, target_BD: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
    """Return the sum [] of 1 − cosine over valid rows of unit vectors."""
    return ((1 - (pred_BD * target_BD).sum(-1)) * valid_B).sum()


def chunked_info_nce(pred_ND: torch.Tensor, target_ND: torch.Tensor, tau: float, size: int) -> float:
    """Return InfoNCE's mean over groups of `size` rows, as training's batches have them; the rows are dealt
    to groups by a fixed permutation, so that neighbours, who may have seen one picture, are apart.
    """
    order_N = torch.randperm(len(pred_ND), generator=torch.Generator().manual_seed(0))
    chunks = [chunk for chunk in order_N.split(size) if len(chunk) > 1] or [order_N]
    losses = [float(info_nce(pred_ND[chunk], target_ND[chunk], tau)) * len(chunk) for chunk in chunks]
    return sum(losses) / sum(map(len, chunks))


def augmented(
    x_BV: torch.Tensor,
    targets: Mapping[str, torch.Tensor],
    valid_B: torch.Tensor,
    position_B: torch.Tensor,
    key: int,
    config: FmriClipDataConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return voxels [B, V] and unit targets with noise, voxel dropout and mixup, as `config` has them.

    A row's noise depends on (key, position) alone. Its partner in mixup is another valid row of the batch
    over all workers.
    """
    if config.mixup and config.augmentation:
        x_BV, targets = _mixed(x_BV, targets, valid_B, position_B, key, config.mixup)
    if config.noise_std:
        x_BV = x_BV + config.noise_std * normal_rows(key_of(key, "noise"), position_B, x_BV.shape[1])
    if config.voxel_dropout:
        u_BV = uniform_rows(key_of(key, "dropout"), position_B, x_BV.shape[1])
        x_BV = x_BV * (u_BV >= config.voxel_dropout)
    return x_BV, dict(targets)


def _mixed(
    x_BV: torch.Tensor,
    targets: Mapping[str, torch.Tensor],
    valid_B: torch.Tensor,
    position_B: torch.Tensor,
    key: int,
    alpha: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Blend each row with the one that a keyed number of places further on in the global batch, its share
    drawn from Beta(alpha, alpha) (Zhang et al. 2018).
    """
    place_N = collectives.all_gather_rows(position_B[valid_B])
    order_N = place_N.argsort()
    num = len(place_N)
    if num < 2:
        return x_BV, dict(targets)
    shift = 1 + key_of(key, "partner") % (num - 1)
    rank_B = torch.searchsorted(place_N[order_N].contiguous(), position_B).clamp(max=num - 1)
    partner_B = order_N[(rank_B + shift) % num]
    u_B = uniform_rows(key_of(key, "share"), position_B, 1)[:, 0].double().cpu().numpy()
    share_B = torch.from_numpy(betaincinv(alpha, alpha, u_B).astype(np.float32)).to(x_BV.device)
    share_B1 = torch.where(valid_B, torch.maximum(share_B, 1 - share_B), 1.0)[:, None]

    def blended(rows_BX: torch.Tensor) -> torch.Tensor:
        others_BX = collectives.all_gather_rows(rows_BX[valid_B])[partner_B]
        return share_B1 * rows_BX + (1 - share_B1) * others_BX

    return blended(x_BV), {name: unit_rows(blended(rows)) for name, rows in targets.items()}
