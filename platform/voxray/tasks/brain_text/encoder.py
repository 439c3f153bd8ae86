"""From neural features to the GRU's hidden states: a layer per session, patches of bins, a GRU.

As in Neuroprosthetics-Lab/nejm-brain-to-text (DOMAINS.md S1.a). Shapes: B trials, T time bins, F features,
P patches, H units of the GRU.
"""

import torch
from torch import nn
from torch.nn import functional as F

from voxray.tasks.brain_text.config import ModelConfig


def num_patches(num_time_steps: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Return how many patches of `size` bins, `stride` apart, fit: floor((T − size) / stride) + 1, or 0."""
    return (torch.div(num_time_steps - size, stride, rounding_mode="floor") + 1).clamp(min=0)


class DayLayers(nn.Module):
    """softsign(x W_day + b_day), W_day the identity and b_day zero at first.

    All sessions' weights are one tensor: a session that a batch lacks has gradient zero, on any worker.
    """

    def __init__(self, num_days: int, num_features: int) -> None:
        """Build them for `num_days` sessions."""
        super().__init__()
        self.weight = nn.Parameter(torch.eye(num_features).repeat(num_days, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_days, 1, num_features))

    def forward(self, neural_BTF: torch.Tensor, day_B: torch.Tensor) -> torch.Tensor:
        """Return [B, T, F]."""
        return F.softsign(torch.baddbmm(self.bias[day_B], neural_BTF, self.weight[day_B]))


class PatchedGru(nn.Module):
    """Patches of bins → GRU with a learnt first state; one state per patch."""

    def __init__(self, config: ModelConfig, num_features: int) -> None:
        """Build it; recurrent weights are orthogonal, all others Xavier's."""
        super().__init__()
        self.size, self.stride = config.patch_size, config.patch_stride
        self.rnn = nn.GRU(
            config.patch_size * num_features,
            config.n_units,
            config.n_layers,
            batch_first=True,
            dropout=config.rnn_dropout if config.n_layers > 1 else 0.0,
        )
        for name, parameter in self.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(parameter)
            elif "weight_ih" in name:
                nn.init.xavier_uniform_(parameter)
        self.h0_11H = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(1, 1, config.n_units)))

    def forward(self, features_BTF: torch.Tensor) -> torch.Tensor:
        """Return the last layer's states [B, P, H], at least one; what lies behind a trial's own number of
        patches depends on padding.
        """
        num_trials, num_bins, num_features = features_BTF.shape
        features_BTF = F.pad(features_BTF, (0, 0, 0, max(0, self.size - num_bins)))
        patches_BPFS = features_BTF.unfold(1, self.size, self.stride)
        # within a patch, bins come first and a bin's features lie together, as upstream has it
        patches_BPX = patches_BPFS.transpose(2, 3).reshape(num_trials, -1, self.size * num_features)
        h0_LBH = self.h0_11H.expand(self.rnn.num_layers, num_trials, -1).contiguous()
        return self.rnn(patches_BPX, h0_LBH)[0]
