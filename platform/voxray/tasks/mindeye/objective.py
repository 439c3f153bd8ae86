"""Losses of the MindEye task (DOMAINS.md S3.b): which contrastive term holds when, and MixCo's mixing.

Shapes: B rows of a batch, N rows of an update, V voxels, F numbers of an embedding, its tokens flattened.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from voxray.core import collectives
from voxray.core.place import Place
from voxray.core.randomness import key as key_of
from voxray.core.randomness import normal_rows, places_rows, uniform_rows
from voxray.losses.contrastive import info_nce
from voxray.losses.mixed_pairs import bi_mixco, soft_clip
from voxray.tasks.mindeye.config import MindEyeObjectiveConfig
from voxray.tasks.mindeye.prior import DiffusionPrior, PriorDraws

NEVER = 1.0  # the share of its own voxels that an unmixed row has


# --- what holds at a place of the training
# -------------------------------------------------------------------------------------------------------


def mixco_epochs(own: MindEyeObjectiveConfig, num_epochs: int) -> int:
    """Return for how many epochs voxels are mixed: int(fraction · epochs), as upstream."""
    return int(own.mixco_fraction * num_epochs)


def alpha(own: MindEyeObjectiveConfig, place: Place) -> float:
    """Return the weight of the prior's squared error: constant, or linear from epoch to epoch."""
    if own.alpha_end is None or place.num_epochs < 2:
        return own.alpha
    share = min(1.0, place.epoch / (place.num_epochs - 1))
    return own.alpha + share * (own.alpha_end - own.alpha)


def nce_weight(own: MindEyeObjectiveConfig, place: Place) -> float:
    """Return the contrastive term's weight."""
    return 1 - alpha(own, place) if own.nce_weight == "1 - alpha" else own.nce_weight


def soft_tau(own: MindEyeObjectiveConfig, place: Place) -> float:
    """Return SoftCLIP's temperature: half a cosine over the epochs after MixCo, its ends included."""
    first = mixco_epochs(own, place.num_epochs)
    steps = place.num_epochs - first - 1
    share = min(1.0, max(0, place.epoch - first) / steps) if steps > 0 else 0.0
    return own.soft_tau_end + (own.soft_tau - own.soft_tau_end) / 2 * (1 + math.cos(math.pi * share))


def is_mixed(own: MindEyeObjectiveConfig, place: Place) -> bool:
    """Whether voxels are mixed at this place."""
    return place.epoch < mixco_epochs(own, place.num_epochs)


def tau(own: MindEyeObjectiveConfig, place: Place) -> float:
    """Return the contrastive term's temperature."""
    is_soft = own.contrast == "soft_clip" and not is_mixed(own, place)
    return soft_tau(own, place) if is_soft else own.tau


# --- MixCo
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Mixed voxels [B, V]; each row's share of its own, and the place in the epoch's order of its partner."""

    voxels_BV: torch.Tensor
    share_B: torch.Tensor
    partner_B: torch.Tensor


def drawn_shares(own: MindEyeObjectiveConfig, key: int, position_B: torch.Tensor) -> torch.Tensor:
    """Return each row's share [B] of its own voxels: of `mixco_rows` of the rows Beta(b, b), of the others 1.

    A row's share depends on (key, position) alone.
    """
    u_B2 = uniform_rows(key_of(key, "mixco"), position_B, 2)
    quantile_B = betaincinv(own.mixco_beta, own.mixco_beta, u_B2[:, 0].double().cpu().numpy())
    share_B = torch.from_numpy(np.asarray(quantile_B, np.float32)).to(position_B.device)
    return torch.where(u_B2[:, 1] < own.mixco_rows, share_B, NEVER)


def mixed(
    voxels_BV: torch.Tensor, share_B: torch.Tensor, valid_B: torch.Tensor, position_B: torch.Tensor, key: int
) -> Mixed:
    """Return the voxels, each row's blended with its partner's: share · own + (1 - share) · partner's.

    Partners are the valid rows of the micro-batch over all workers in a keyed order, each row's the next one,
    so that none is its own: they do not depend on the number of workers. A row alone keeps its voxels.
    """
    position_N = collectives.all_gather_rows(position_B[valid_B])
    voxels_NV = collectives.all_gather_rows(voxels_BV[valid_B])
    if len(position_N) < 2:
        return Mixed(voxels_BV, torch.full_like(share_B, NEVER), position_B)
    by_position = position_N.argsort()
    draw_N = uniform_rows(key_of(key, "partner"), position_N[by_position], 1)[:, 0]
    order_N = by_position[draw_N.argsort(stable=True)]
    next_N = torch.empty_like(order_N)
    next_N[order_N] = order_N.roll(-1)
    sorted_N = position_N[by_position].contiguous()
    own_B = by_position[torch.searchsorted(sorted_N, position_B).clamp(max=len(position_N) - 1)]
    partner_B = next_N[own_B]
    share_B = torch.where(valid_B, share_B, NEVER)
    share_B1 = share_B[:, None].to(voxels_BV.dtype)
    blended_BV = share_B1 * voxels_BV + (1 - share_B1) * voxels_NV[partner_B]
    return Mixed(blended_BV, share_B, position_N[partner_B])


def partner_places(position_N: torch.Tensor, partner_N: torch.Tensor) -> torch.Tensor:
    """Return where among the update's rows each row's partner lies, int64 [N]."""
    order_N = position_N.argsort()
    return order_N[torch.searchsorted(position_N[order_N].contiguous(), partner_N)]


# --- the prior's random numbers
# -------------------------------------------------------------------------------------------------------


def prior_draws(
    prior: DiffusionPrior, target: torch.Tensor, key: int, place_B: torch.Tensor, drops: bool
) -> PriorDraws:
    """Return timesteps and noise for targets [B, …], which depend on (key, place) alone; with `drops` some
    rows lack a condition.
    """
    most_B = torch.full_like(place_B, prior.timesteps)
    noise_BF = normal_rows(key_of(key, "noise"), place_B, target[0].numel())
    share = prior.condition_dropout if drops else 0.0
    keep_B2 = uniform_rows(key_of(key, "conditions"), place_B, 2) >= share
    return PriorDraws(
        timestep_B=places_rows(key_of(key, "timestep"), place_B, most_B),
        noise=noise_BF.view_as(target).to(target.dtype),
        keep_brain_B=keep_B2[:, 0],
        keep_image_B=keep_B2[:, 1],
    )


# --- terms
# -------------------------------------------------------------------------------------------------------


def contrast(
    own: MindEyeObjectiveConfig, place: Place, pred_NF: torch.Tensor, true_NF: torch.Tensor
) -> torch.Tensor:
    """Return the contrastive term [] of unmixed rows at a place: SoftCLIP, or InfoNCE."""
    if own.contrast == "soft_clip" and not is_mixed(own, place):
        return soft_clip(pred_NF, true_NF, soft_tau(own, place))
    return info_nce(pred_NF, true_NF, own.tau)


def mixed_contrast(
    own: MindEyeObjectiveConfig,
    pred_NF: torch.Tensor,
    true_NF: torch.Tensor,
    position_N: torch.Tensor,
    partner_N: torch.Tensor,
    share_N: torch.Tensor,
) -> torch.Tensor:
    """Return BiMixCo [] over the rows of an update; partners are named by their places in the epoch."""
    return bi_mixco(pred_NF, true_NF, partner_places(position_N, partner_N), share_N, own.tau)


def chunked_info_nce(pred_NF: torch.Tensor, true_NF: torch.Tensor, tau: float, size: int) -> float:
    """Return InfoNCE's mean over groups of `size` rows, as training's updates have them; the rows are dealt
    to groups by a fixed permutation.
    """
    order_N = torch.randperm(len(pred_NF), generator=torch.Generator().manual_seed(0))
    chunks = [chunk for chunk in order_N.split(size) if len(chunk) > 1] or [order_N]
    losses = [float(info_nce(pred_NF[chunk], true_NF[chunk], tau)) * len(chunk) for chunk in chunks]
    return sum(losses) / sum(map(len, chunks))
