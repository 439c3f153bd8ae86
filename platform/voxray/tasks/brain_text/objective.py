"""Loss terms of the brain-to-text task, each a sum over its own entries, and their counts.

Shapes: B trials, P steps of the brain's embedding, A audio tokens, S steps of both, D the embedding's width,
K units, L units of a transcript.
"""

import torch
from torch.nn import functional as F

from voxray.losses.soft_dtw import soft_dtw

STEPWISE = ("cosine", "mse", "smooth_l1")


def matched(rows_BXD: torch.Tensor, num_B: torch.Tensor, wanted_B: torch.Tensor) -> torch.Tensor:
    """Return each row's first `num_B` steps at `wanted_B` steps by linear interpolation [B, max wanted, D].

    Per row it is `F.interpolate(mode="linear", align_corners=False)`; steps beyond a row's own are arbitrary.
    """
    most = int(wanted_B.max()) if len(wanted_B) else 0
    step_1S = torch.arange(most, device=rows_BXD.device, dtype=rows_BXD.dtype)[None]
    scale_B1 = (num_B / wanted_B.clamp(min=1)).to(rows_BXD.dtype)[:, None]
    place_BS = ((step_1S + 0.5) * scale_B1 - 0.5).clamp(min=0)
    last_B1 = (num_B - 1).clamp(min=0)[:, None]
    lower_BS = torch.minimum(place_BS.long(), last_B1)
    upper_BS = torch.minimum(lower_BS + 1, last_B1)
    share_BS1 = (place_BS - lower_BS).clamp(0, 1)[..., None]
    return _at(rows_BXD, lower_BS) * (1 - share_BS1) + _at(rows_BXD, upper_BS) * share_BS1


def _at(rows_BXD: torch.Tensor, index_BS: torch.Tensor) -> torch.Tensor:
    return rows_BXD.gather(1, index_BS[..., None].expand(-1, -1, rows_BXD.shape[2]))


def num_matched(kind: str, num_steps_B: torch.Tensor, num_audio_B: torch.Tensor) -> torch.Tensor:
    """Return how many entries each trial has in the alignment: steps of the shorter of both, of soft-DTW of
    the longer; none where one of both is empty.
    """
    longer_B, shorter_B = torch.maximum(num_steps_B, num_audio_B), torch.minimum(num_steps_B, num_audio_B)
    return torch.where(shorter_B > 0, longer_B, 0) if kind == "soft_dtw" else shorter_B


def stepwise_distance(
    kind: str,
    brain_BPD: torch.Tensor,
    audio_BAD: torch.Tensor,
    num_steps_B: torch.Tensor,
    num_audio_B: torch.Tensor,
) -> torch.Tensor:
    """Return the sum [] over all trials' matched steps of 1 − cosine, or of the mean over D of the squared or
    smooth L1 difference.
    """
    num_B = torch.minimum(num_steps_B, num_audio_B)
    brain_BSD = matched(_precise(brain_BPD), num_steps_B, num_B)
    audio_BSD = matched(_precise(audio_BAD), num_audio_B, num_B)
    match kind:
        case "cosine":
            away_BS = 1 - F.cosine_similarity(brain_BSD, audio_BSD, dim=-1)
        case "mse":
            away_BS = F.mse_loss(brain_BSD, audio_BSD, reduction="none").mean(-1)
        case _:
            away_BS = F.smooth_l1_loss(brain_BSD, audio_BSD, reduction="none").mean(-1)
    is_step_BS = torch.arange(away_BS.shape[1], device=away_BS.device) < num_B[:, None]
    return torch.where(is_step_BS, away_BS, 0.0).sum()


def dtw_distance(
    brain_BPD: torch.Tensor,
    audio_BAD: torch.Tensor,
    num_steps_B: torch.Tensor,
    num_audio_B: torch.Tensor,
    gamma: float,
) -> torch.Tensor:
    """Return the sum [] over trials of soft-DTW over 1 − cosine."""
    brain_BPD = F.normalize(_precise(brain_BPD), dim=-1)
    audio_BAD = F.normalize(_precise(audio_BAD), dim=-1)
    cost_BPA = 1 - brain_BPD @ audio_BAD.transpose(1, 2)
    is_there_B = (num_steps_B > 0) & (num_audio_B > 0)
    costs_B = soft_dtw(cost_BPA, num_steps_B.clamp(min=1), num_audio_B.clamp(min=1), gamma)
    return torch.where(is_there_B, costs_B, 0.0).sum()


def mean_step(rows_BXD: torch.Tensor, num_B: torch.Tensor) -> torch.Tensor:
    """Return the mean over each row's first `num_B` steps [B, D]."""
    rows_BXD = _precise(rows_BXD)
    is_step_BX = torch.arange(rows_BXD.shape[1], device=rows_BXD.device) < num_B[:, None]
    return torch.where(is_step_BX[..., None], rows_BXD, 0.0).sum(1) / num_B.clamp(min=1)[:, None]


def alignable(num_steps_B: torch.Tensor, units_BL: torch.Tensor, num_units_B: torch.Tensor) -> torch.Tensor:
    """Return which trials [B] CTC can spell: with units, and a step for each of them and for the blank that
    stands between equal ones.
    """
    is_unit_BL = torch.arange(units_BL.shape[1], device=units_BL.device) < num_units_B[:, None]
    repeats_B = ((units_BL[:, 1:] == units_BL[:, :-1]) & is_unit_BL[:, 1:]).sum(1)
    return (num_units_B > 0) & (num_steps_B >= num_units_B + repeats_B)


def ctc(
    logits_BPK: torch.Tensor, num_steps_B: torch.Tensor, units_BL: torch.Tensor, num_units_B: torch.Tensor
) -> torch.Tensor:
    """Return the sum [] over alignable trials of −log p(transcript), blank 0 (Graves et al. 2006)."""
    is_spelt_B = alignable(num_steps_B, units_BL, num_units_B)
    log_probs_PBK = _precise(logits_BPK).log_softmax(-1).transpose(0, 1)
    lengths = torch.where(is_spelt_B, num_steps_B, 1), torch.where(is_spelt_B, num_units_B, 0)
    losses_B = F.ctc_loss(log_probs_PBK, units_BL, *lengths, blank=0, reduction="none")
    return torch.where(is_spelt_B, losses_B, 0.0).sum()


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
