"""What is done to neural features on the device: augmentation of training rows, smoothing of all rows.

In the order of Neuroprosthetics-Lab/nejm-brain-to-text (DOMAINS.md S1.b). A row's random numbers depend on
the key and its position alone, and padding stays zero. Shapes: B trials, T time bins, F features, K taps.
"""

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from voxray.core.randomness import key as random_key
from voxray.core.randomness import normal_rows, uniform_rows
from voxray.tasks.brain_text.config import TransformsConfig

_SMALLEST_TAP = 0.01  # of the kernel, as upstream cuts it


def augmented(
    neural_BTF: torch.Tensor,
    num_bins_B: torch.Tensor,
    position_B: torch.Tensor,
    key: int,
    config: TransformsConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features with noise, offset, walk and cut, and the bins that are left, at least one."""
    _, num_bins, num_features = neural_BTF.shape

    def normal(name: str, *shape: int) -> torch.Tensor:
        numbers_BN = normal_rows(random_key(key, name), position_B, torch.Size(shape).numel())
        return numbers_BN.view(-1, *shape).to(neural_BTF.dtype)

    if config.static_gain_std:
        mix_BFF = config.static_gain_std * normal("gain", num_features, num_features)
        neural_BTF = neural_BTF + neural_BTF @ mix_BFF
    if config.white_noise_std:
        neural_BTF = neural_BTF + config.white_noise_std * normal("noise", num_bins, num_features)
    if config.constant_offset_std:
        neural_BTF = neural_BTF + config.constant_offset_std * normal("offset", 1, num_features)
    if config.random_walk_std:
        steps_BTF = config.random_walk_std * normal("walk", num_bins, num_features)
        neural_BTF = neural_BTF + steps_BTF.cumsum(1)
    if config.random_cut:
        uniform_B = uniform_rows(random_key(key, "cut"), position_B, 1)[:, 0]
        cut_B = torch.minimum((uniform_B * config.random_cut).long(), (num_bins_B - 1).clamp(min=0))
        neural_BTF, num_bins_B = _later(neural_BTF, cut_B), num_bins_B - cut_B
    return _without_padding(neural_BTF, num_bins_B), num_bins_B


def smoothed(neural_BTF: torch.Tensor, num_bins_B: torch.Tensor, config: TransformsConfig) -> torch.Tensor:
    """Return the features smoothed over time, zeros around them, padding zero again."""
    if not config.smooth_data:
        return neural_BTF
    taps_K = gaussian_taps(config.smooth_kernel_std, config.smooth_kernel_size).to(neural_BTF)
    rows_N1T = neural_BTF.transpose(1, 2).flatten(0, 1)[:, None]
    smooth_N1T = F.conv1d(rows_N1T, taps_K[None, None], padding="same")
    num_trials, num_bins, _ = neural_BTF.shape  # `len` would be a constant to an export, which traces this
    smooth_BTF = smooth_N1T.view(num_trials, -1, num_bins).transpose(1, 2)
    return _without_padding(smooth_BTF, num_bins_B)


def gaussian_taps(std: float, size: int) -> torch.Tensor:
    """Return the kernel [K], sum 1: a Gaussian around the middle of `size` bins, scaled to a sum of 1, of
    which taps above 0.01 are kept. It is what scipy's gaussian_filter1d makes of a unit impulse there.
    """
    return torch.tensor(_taps(std, size), dtype=torch.float64)


@lru_cache(maxsize=8)
def _taps(std: float, size: int) -> tuple[float, ...]:
    """Return the kernel as numbers: how many they are is no question to a tensor, which an export traces."""
    taps_S = np.exp(-0.5 * ((np.arange(size) - size // 2) / std) ** 2)
    taps_S = taps_S / taps_S.sum()
    kept_K = taps_S[taps_S > min(_SMALLEST_TAP, float(taps_S.max()) / 2)]
    return tuple((kept_K / kept_K.sum()).tolist())


def _later(neural_BTF: torch.Tensor, cut_B: torch.Tensor) -> torch.Tensor:
    """Return each row from its bin `cut_B` on; what comes behind the last bin is not used."""
    num_bins = neural_BTF.shape[1]
    bin_BT = (torch.arange(num_bins, device=cut_B.device) + cut_B[:, None]).clamp(max=num_bins - 1)
    return neural_BTF.gather(1, bin_BT[..., None].expand_as(neural_BTF))


def _without_padding(neural_BTF: torch.Tensor, num_bins_B: torch.Tensor) -> torch.Tensor:
    is_bin_BT = torch.arange(neural_BTF.shape[1], device=num_bins_B.device) < num_bins_B[:, None]
    return torch.where(is_bin_BT[..., None], neural_BTF, 0.0)
