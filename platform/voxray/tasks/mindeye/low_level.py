"""MindEye's low-level branch (DOMAINS.md S3.a): voxels → latents of an autoencoder, whose decoder makes a
blurred picture of them.

Shapes: B rows, V voxels, H hidden width, C channels of a latent, h × w its pixels.
"""

from typing import Any

import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.core.schema import Schema
from voxray.tasks.mindeye.low_level_config import LATENT, LowLevelConfig

LatentShape = tuple[int, int, int]


class LowLevel(nn.Module):
    """x [B, V] → latents [B, C, h, w]: a residual MLP, a map of few pixels, and a decoder like that of Stable
    Diffusion's autoencoder, which doubles the map's side once per block after the first.
    """

    def __init__(self, config: LowLevelConfig, num_voxels: int, latent: LatentShape) -> None:
        """`latent` is (C, h, w). Raises InputError where the blocks do not lead to its sides."""
        from diffusers.models.autoencoders.vae import Decoder

        super().__init__()
        channels, *sides = latent
        factor = 2 ** (len(config.channels) - 1)
        if any(side % factor for side in sides):
            raise InputError(
                f"model.low_level.channels: {len(config.channels)} blocks make sides that are multiples of "
                f"{factor}, and the dataset's latents are {sides[0]} × {sides[1]}; name fewer blocks"
            )
        hidden, sides = config.hidden_dim, [side // factor for side in sides]
        self.first = _layer(num_voxels, hidden, config.dropout_in)
        self.blocks = nn.ModuleList(_layer(hidden, hidden, config.dropout) for _ in range(config.n_blocks))
        self.to_map = nn.Linear(hidden, config.map_channels * sides[0] * sides[1], bias=False)
        self.unflatten = nn.Unflatten(1, (config.map_channels, *sides))
        self.norm = nn.GroupNorm(1, config.map_channels)
        decoder: Any = Decoder(
            in_channels=config.map_channels,
            out_channels=channels,
            up_block_types=("UpDecoderBlock2D",) * len(config.channels),
            block_out_channels=config.channels,
            layers_per_block=1,
            norm_num_groups=config.norm_groups,
        )
        self.decoder = decoder

    def forward(self, voxels_BV: torch.Tensor) -> torch.Tensor:
        """Return latents [B, C, h, w]."""
        x_BH = self.first(voxels_BV)
        for block in self.blocks:
            x_BH = x_BH + block(x_BH)
        return self.decoder(self.norm(self.unflatten(self.to_map(x_BH))))


def latent_shape(config: LowLevelConfig, schema: Schema) -> LatentShape | None:
    """Return the shape of the dataset's latents; None where the branch is off. Raises InputError where it is
    on and the dataset has none.
    """
    if not config.enabled:
        return None
    column = schema.columns.get(LATENT)
    if column is None or None in column.shape:
        raise InputError(
            f"model.low_level: the dataset has no column {LATENT}; prepare it with vae.model=FOLDER, an "
            "autoencoder of diffusers, or set model.low_level.enabled=false"
        )
    channels, height, width = (int(size) for size in column.shape if size is not None)
    return channels, height, width


def _layer(in_dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_dim, hidden, bias=False), nn.LayerNorm(hidden), nn.SiLU(), nn.Dropout(dropout)
    )
