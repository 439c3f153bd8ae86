"""The masked autoencoder over space and wavelength, its heads, and an autoencoder of single spectra.

A cube [B, C, H, W] is cut into N = T · L tokens, T groups of U bands by L places of P = side² pixels, in
band-major order (DOMAINS.md S2.a). The encoder sees the K kept tokens alone. D encoder width, E decoder
width, Q classes. Weights and sizes do not depend on the batch.
"""

import itertools
import math

import torch
from torch import nn

from voxray.tasks.hyperspectral.config import ModelConfig
from voxray.tasks.hyperspectral.masking import TokenGrid, hidden_tokens
from voxray.tasks.hyperspectral.transformer import Blocks, init_linear

INIT_STD = 0.02


class Bands(nn.Module):
    """Each band's mean and standard deviation over the training pixels; 0 and 1 without `data.normalize`."""

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(self, mean_C: torch.Tensor, std_C: torch.Tensor) -> None:
        """Keep them with the weights."""
        super().__init__()
        self.register_buffer("mean_C", mean_C.float())
        self.register_buffer("std_C", std_C.float())

    def scaled(self, cube_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the cube on the model's scale."""
        return (cube_BCHW - self.mean_C[:, None, None]) / self.std_C[:, None, None]

    def restored(self, tokens_BTLUP: torch.Tensor) -> torch.Tensor:
        """Return tokens of the model's scale on the dataset's."""
        shape = (tokens_BTLUP.shape[1], 1, tokens_BTLUP.shape[3], 1)
        return tokens_BTLUP * self.std_C.reshape(shape) + self.mean_C.reshape(shape)


class Positions(nn.Module):
    """Learned position embeddings, one per place and one per group of bands, added up."""

    def __init__(self, grid: TokenGrid, dim: int, std: float) -> None:
        """Begin with normal values of deviation `std`."""
        super().__init__()
        self.place_LD = nn.Parameter(torch.empty(grid.places, dim))
        self.group_TD = nn.Parameter(torch.empty(grid.groups, dim))
        for parameter in (self.place_LD, self.group_TD):
            nn.init.trunc_normal_(parameter, std=std)

    def forward(self) -> torch.Tensor:
        """Return [N, D]."""
        return (self.group_TD[:, None] + self.place_LD).flatten(0, 1)


class Encoder(nn.Module):
    """Tokens → features. The embedding is upstream's Conv3d with stride = kernel, written as a Linear."""

    def __init__(self, config: ModelConfig, grid: TokenGrid) -> None:
        """Build for a grid."""
        super().__init__()
        shape = config.shape
        self.grid = grid
        self.embed = nn.Linear(grid.values, shape.embed_dim)
        self.positions = Positions(grid, shape.embed_dim, config.position_std)
        self.stack = Blocks(
            shape.embed_dim, shape.depth, shape.num_heads, shape.mlp_ratio, config.grad_checkpointing
        )

    def forward(self, cube_BCHW: torch.Tensor, kept_BK: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C, H, W] → [B, K, D] of the kept tokens, of all without `kept_BK`."""
        values_BNV = self.grid.cut(cube_BCHW).flatten(3).flatten(1, 2)
        position_ND = self.positions()
        if kept_BK is None:
            return self.stack(self.embed(values_BNV) + position_ND)
        kept_BKV = values_BNV.gather(1, kept_BK[..., None].expand(-1, -1, values_BNV.shape[2]))
        return self.stack(self.embed(kept_BKV) + position_ND[kept_BK])


class Decoder(nn.Module):
    """Features of the kept tokens → values of all tokens."""

    def __init__(self, config: ModelConfig, grid: TokenGrid) -> None:
        """Build for a grid."""
        super().__init__()
        shape = config.shape
        self.grid = grid
        self.embed = nn.Linear(shape.embed_dim, shape.decoder_dim)
        self.mask_token_E = nn.Parameter(torch.empty(shape.decoder_dim))
        nn.init.normal_(self.mask_token_E, std=INIT_STD)
        self.positions = Positions(grid, shape.decoder_dim, config.position_std)
        self.stack = Blocks(
            shape.decoder_dim,
            shape.decoder_depth,
            shape.decoder_heads,
            shape.mlp_ratio,
            config.grad_checkpointing,
        )
        self.head = nn.Linear(shape.decoder_dim, grid.values)

    def forward(self, features_BKD: torch.Tensor, kept_BK: torch.Tensor | None) -> torch.Tensor:
        """[B, K, D] → [B, N, U · P]."""
        x_BKE = self.embed(features_BKD)
        if kept_BK is None:
            x_BNE = x_BKE
        else:
            batch, _, dim = x_BKE.shape
            mask_BNE = self.mask_token_E.to(x_BKE.dtype).expand(batch, self.grid.tokens, dim)
            x_BNE = mask_BNE.scatter(1, kept_BK[..., None].expand(-1, -1, dim), x_BKE)
        return self.head(self.stack(x_BNE + self.positions()))


class MaskedAutoencoder(nn.Module):
    """Cube and kept tokens → all tokens' values, on the model's scale."""

    def __init__(self, config: ModelConfig, grid: TokenGrid, bands: Bands) -> None:
        """Build for a grid; linear layers begin as MAE's."""
        super().__init__()
        self.bands, self.grid = bands, grid
        self.encoder, self.decoder = Encoder(config, grid), Decoder(config, grid)
        self.apply(init_linear)

    def forward(self, cube_BCHW: torch.Tensor, kept_BK: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C, H, W] → [B, T, L, U, P]; without `kept_BK` nothing is hidden."""
        grid = self.grid
        features_BKD = self.encoder(self.bands.scaled(cube_BCHW), kept_BK)
        values_BNV = self.decoder(features_BKD, kept_BK)
        return values_BNV.reshape(-1, grid.groups, grid.places, grid.bands, grid.side**2)


class SpectralAutoencoder(nn.Module):
    """Each pixel's visible bands → a few numbers → all of its bands; pixels do not meet.

    It takes the bands, zero where hidden, and which are hidden: what a pixel's own spectrum says of its
    hidden bands, without any context of space.
    """

    def __init__(self, config: ModelConfig, grid: TokenGrid, bands: Bands) -> None:
        """Build for a grid."""
        super().__init__()
        self.bands, self.grid = bands, grid
        num_bands = grid.groups * grid.bands
        down = [2 * num_bands, *config.hidden_dims, config.latent_dim]
        up = [config.latent_dim, *reversed(config.hidden_dims), num_bands]
        self.encoder, self.decoder = _perceptron(down), _perceptron(up)
        self.apply(init_linear)

    def forward(self, cube_BCHW: torch.Tensor, kept_BK: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C, H, W] → [B, T, L, U, P]; without `kept_BK` nothing is hidden."""
        tokens_BTLUP = self.grid.cut(self.bands.scaled(cube_BCHW))
        hidden_BTLUP = torch.zeros_like(tokens_BTLUP)
        if kept_BK is not None:
            hidden_BTLUP = hidden_tokens(kept_BK, self.grid)[..., None, None].expand_as(tokens_BTLUP)
        spectra_BLPC = _spectra(tokens_BTLUP.masked_fill(hidden_BTLUP.bool(), 0.0))
        flags_BLPC = _spectra(hidden_BTLUP.to(spectra_BLPC.dtype))
        out_BLPC = self.decoder(self.encoder(torch.cat([spectra_BLPC, flags_BLPC], dim=-1)))
        return out_BLPC.unflatten(3, (self.grid.groups, self.grid.bands)).permute(0, 3, 1, 4, 2)


class SegmentationHead(nn.Module):
    """A place's features → a class for each of its pixels: LayerNorm and one Linear."""

    def __init__(self, config: ModelConfig, grid: TokenGrid) -> None:
        """`pool`: whether the groups of bands stand side by side or are averaged."""
        super().__init__()
        dim = config.shape.embed_dim
        self.grid, self.pool, self.num_classes = grid, config.pool, config.num_classes
        width = dim * (grid.groups if config.pool == "concat" else 1)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, grid.side**2 * config.num_classes)

    def forward(self, features_BND: torch.Tensor) -> torch.Tensor:
        """[B, N, D] → [B, Q, H, W]."""
        grid = self.grid
        x_BTLD = features_BND.unflatten(1, (grid.groups, grid.places))
        x_BLX = x_BTLD.mean(1) if self.pool == "mean" else x_BTLD.transpose(1, 2).flatten(2)
        logits = self.linear(self.norm(x_BLX)).unflatten(2, (self.num_classes, grid.side, grid.side))
        logits = logits.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 4, 2, 5)
        return logits.reshape(-1, self.num_classes, grid.height * grid.side, grid.width * grid.side)


class ClassificationHead(nn.Module):
    """All tokens' mean → a class of the cube: LayerNorm and one Linear."""

    def __init__(self, config: ModelConfig) -> None:
        """One logit per name in `model.classes`."""
        super().__init__()
        self.norm = nn.LayerNorm(config.shape.embed_dim)
        self.linear = nn.Linear(config.shape.embed_dim, len(config.classes))

    def forward(self, features_BND: torch.Tensor) -> torch.Tensor:
        """[B, N, D] → [B, Q]."""
        return self.linear(self.norm(features_BND.mean(1)))


class Classifier(nn.Module):
    """The encoder, which sees all tokens, and a head on it."""

    def __init__(self, config: ModelConfig, grid: TokenGrid, bands: Bands) -> None:
        """`model.head` says which head."""
        super().__init__()
        self.bands, self.grid = bands, grid
        self.encoder = Encoder(config, grid)
        segments = config.head == "segmentation"
        self.head = SegmentationHead(config, grid) if segments else ClassificationHead(config)
        self.apply(init_linear)

    def forward(self, cube_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] → logits [B, Q, H, W] or [B, Q]."""
        return self.head(self.encoder(self.bands.scaled(cube_BCHW)))


def build(config: ModelConfig, grid: TokenGrid, bands: Bands) -> nn.Module:
    """Return the model that `config` describes, with random weights."""
    if config.name == "spectral_autoencoder":
        return SpectralAutoencoder(config, grid, bands)
    if config.head != "none":
        return Classifier(config, grid, bands)
    return MaskedAutoencoder(config, grid, bands)


def forward_flops(config: ModelConfig, grid: TokenGrid, num_kept: int) -> float:
    """Return the floating-point operations of one cube's forward pass through the masked autoencoder: two per
    multiplication of matrices, norms and activations left out. A training step takes three times as many.
    """
    shape = config.shape

    def stack(num: int, dim: int, depth: int) -> float:
        of_weights = num * dim * dim * (4 + 2 * shape.mlp_ratio)
        return 2 * depth * (of_weights + 2 * num * num * dim)

    embed = 2 * num_kept * (grid.values * shape.embed_dim + shape.embed_dim * shape.decoder_dim)
    head = 2 * grid.tokens * shape.decoder_dim * grid.values
    encoder = stack(num_kept, shape.embed_dim, shape.depth)
    return math.fsum((embed, head, encoder, stack(grid.tokens, shape.decoder_dim, shape.decoder_depth)))


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.GELU()] if index else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _spectra(tokens_BTLUP: torch.Tensor) -> torch.Tensor:
    """[B, T, L, U, P] → each pixel's bands [B, L, P, C]."""
    return tokens_BTLUP.permute(0, 2, 4, 1, 3).flatten(3)
