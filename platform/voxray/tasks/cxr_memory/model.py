"""Backbone and classifier of the chest X-ray task (DOMAINS.md S4.a).

Shapes: B rows, C input channels, H × W pixels, D backbone features, K labels.
"""

from typing import Any

import timm
import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.tasks.cxr_memory.config import TORCHVISION_NAMES, MemoryConfig, ModelConfig
from voxray.tasks.cxr_memory.memory_bank import MemoryBank

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    ) -> None:
        """Build it; `pixel_mean` and `pixel_std` of the training images in [0, 1] are used without
        `pretrained`. `seed` is the memory's.
        """
        super().__init__()
        self.in_chans = config.in_chans
        self.backbone = _backbone(config)
        features = int(getattr(self.backbone, "num_features"))  # noqa: B009 - timm's attribute, not typed
        self.bank = MemoryBank(memory, features, seed) if memory.use_memory else None
        self.head = nn.Sequential(
            nn.BatchNorm1d(features),
            nn.Linear(features, config.hidden_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_dim, num_labels),
        )
        mean = (
            IMAGENET_MEAN if config.pretrained and config.in_chans == 3 else (pixel_mean,) * config.in_chans
        )
        std = IMAGENET_STD if config.pretrained and config.in_chans == 3 else (pixel_std,) * config.in_chans
        self.register_buffer("mean_C", torch.tensor(mean))
        self.register_buffer("std_C", torch.tensor(std))

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] for grey images [B, 1, H, W] with values in [0, 255]."""
        image_BCHW = image_BCHW.float().div(255).expand(-1, self.in_chans, -1, -1)
        normal_BCHW = (image_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]
        features_BD: torch.Tensor = self.backbone(normal_BCHW)
        return self.head(features_BD if self.bank is None else self.bank(features_BD))


def _backbone(config: ModelConfig) -> nn.Module:
    """Return timm's backbone with pooled features [B, D]; a guide's torchvision name stands for timm's."""
    name = TORCHVISION_NAMES.get(config.backbone, config.backbone)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": config.in_chans}
    if not timm.is_model(name):
        near = timm.list_models(f"*{name[:8]}*")[:3]
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise InputError(f"model.backbone: timm knows no model '{config.backbone}'{hint}")
    try:
        return timm.create_model(name, pretrained=config.pretrained, **options)
    except Exception as error:
        if not config.pretrained:
            raise
        raise InputError(
            f"model.pretrained: the weights of '{name}' could not be loaded ({type(error).__name__}); "
            "connect to the hub once, or set model.pretrained=false"
        ) from error
