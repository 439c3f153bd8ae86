"""Backbone and classifier of the chest X-ray task (DOMAINS.md S4.a).

Shapes: B rows, C input channels, H × W pixels, D backbone features, K labels.
"""

import torch
from torch import nn

from voxray.tasks.cxr_memory.backbone import build_backbone
from voxray.tasks.cxr_memory.config import MemoryConfig, ModelConfig
from voxray.tasks.cxr_memory.memory_bank import MemoryBank


class CxrClassifier(nn.Module):
    """image [B, 1, H, W] in [0, 255] → logits [B, K]: normalise, timm backbone, plus what the bank retrieves
    where there is one, BatchNorm → Linear → ReLU → Linear.
    """

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(
        self,
        config: ModelConfig,
        memory: MemoryConfig,
        num_labels: int,
        pixel_mean: float,
        pixel_std: float,
        seed: int = 0,
        image_side: int | None = None,
    ) -> None:
        """Build it for images of `image_side` pixels, where that is known. Pixels are normalised as the
        pretrained weights' were, else by `pixel_mean` and `pixel_std` of the training images in [0, 1].
        `seed` is the memory's.
        """
        super().__init__()
        self.in_chans = config.in_chans
        backbone = build_backbone(config, image_side)
        self.backbone = backbone.module
        self.bank = MemoryBank(memory, backbone.dim, num_labels, seed) if memory.use_memory else None
        self.head = nn.Sequential(
            nn.BatchNorm1d(backbone.dim),
            nn.Linear(backbone.dim, config.hidden_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_dim, num_labels),
        )
        self.register_buffer("mean_C", torch.tensor(backbone.mean or (pixel_mean,) * config.in_chans))
        self.register_buffer("std_C", torch.tensor(backbone.std or (pixel_std,) * config.in_chans))

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] for grey images [B, 1, H, W] with values in [0, 255]."""
        image_BCHW = image_BCHW.float().div(255).expand(-1, self.in_chans, -1, -1)
        normal_BCHW = (image_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        features_BD: torch.Tensor = self.backbone(normal_BCHW)
        return self.head(features_BD if self.bank is None else self.bank(features_BD))
