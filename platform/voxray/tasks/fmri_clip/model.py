"""Networks between voxels and CLIP embeddings (DOMAINS.md S0.a).

Shapes: B rows, V voxels of the dataset, v of them that are used, L latent width, D an embedding's width.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from voxray.tasks.fmri_clip.config import EncoderConfig, ModelConfig

MIN_NORM = 1e-8  # a shorter vector is divided by this (DOMAINS S0.a)
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def unit_rows(rows_BD: torch.Tensor) -> torch.Tensor:
    """Return the rows at length 1, in float32 at least."""
    wide = torch.promote_types(rows_BD.dtype, torch.float32)
    return F.normalize(rows_BD.to(wide), dim=-1, eps=MIN_NORM)


class Voxels(nn.Module):
    """The voxels that a network uses: all of a dataset's, or those that a reliability chose [v]."""

    kept_v: torch.Tensor

    def __init__(self, kept_v: torch.Tensor) -> None:
        """Keep their places, ascending, int64."""
        super().__init__()
        self.register_buffer("kept_v", kept_v)
        self.is_all = bool((kept_v == torch.arange(len(kept_v))).all())

    def forward(self, x_BV: torch.Tensor) -> torch.Tensor:
        """Return x [B, v]."""
        return x_BV if self.is_all and x_BV.shape[-1] == len(self.kept_v) else x_BV[..., self.kept_v]


class ResidualBlock(nn.Module):
    """x + Dropout(fc2(Dropout(GELU(fc1(LayerNorm(x)))))), all of one width."""

    def __init__(self, width: int, dropout: float) -> None:
        """Make its layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BL: torch.Tensor) -> torch.Tensor:
        """Return [B, L]."""
        return x_BL + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(self.norm(x_BL))))))


class Encoder(nn.Module):
    """x [B, V] → {target: unit rows [B, D]}: ridge, mlp or two_stage.

    `projectors` bring targets of several widths to one, where InfoNCE compares their mean; `layer_logits` are
    the layers' weights before their softmax. `brain` is a frozen inverse network, where the loss asks for it.
    """

    layer_logits: nn.Parameter

    def __init__(
        self,
        config: EncoderConfig,
        kept_v: torch.Tensor,
        dims: Mapping[str, int],
        layer_weights: Mapping[str, float] | None = None,
        brain: "Inverse | None" = None,
    ) -> None:
        """`dims` are the targets' widths, the predicted one among them; `layer_weights` make them learnt."""
        super().__init__()
        self.target, self.names = config.target, tuple(dims)
        self.voxels = Voxels(kept_v)
        width = len(kept_v)
        match config.architecture:
            case "mlp":
                self.body, width = _mlp(config, width)
            case "two_stage":
                self.body, width = _stage1(config, width), config.latent_dim
            case _:
                self.body = nn.Identity()
        self.shared, width = _shared_head(config, width, len(dims))
        has_own_stage = config.architecture == "two_stage" and isinstance(self.shared, nn.Identity)
        self.heads = nn.ModuleDict(
            {
                name: _head(config, width, dim) if has_own_stage else nn.Linear(width, dim)
                for name, dim in dims.items()
            }
        )
        common = dims[config.target]
        self.projectors = nn.ModuleDict(
            {name: nn.Linear(dim, common, bias=False) for name, dim in dims.items()}
            if len(set(dims.values())) > 1
            else {}
        )
        logits = torch.tensor([math.log((layer_weights or {}).get(name, 1.0)) for name in dims])
        self.layer_logits = nn.Parameter(logits, requires_grad=layer_weights is not None and len(dims) > 1)
        self.brain = brain
        if brain is not None:
            brain.requires_grad_(False)

    def forward(self, x_BV: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return unit rows [B, D] for each target."""
        latent_BL = self.shared(self.body(self.voxels(x_BV)))
        return {name: unit_rows(head(latent_BL)) for name, head in self.heads.items()}

    def pooled(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the unit mean [B, D] over the targets of predicted or true embeddings, projected where their
        widths differ.
        """
        if len(rows) == 1:
            return next(iter(rows.values()))
        same = [self.projectors[name](value) if self.projectors else value for name, value in rows.items()]
        return unit_rows(torch.stack(same).mean(0))

    def layer_weights(self) -> dict[str, torch.Tensor]:
        """Return each target's weight; they add up to 1."""
        return dict(zip(self.names, self.layer_logits.float().softmax(0), strict=True))

    def train(self, mode: bool = True) -> "Encoder":
        """The frozen inverse network stays in evaluation mode."""
        super().train(mode)
        if self.brain is not None:
            self.brain.eval()
        return self


class ClipAdapter(nn.Module):
    """x [B, V] → {target: unit rows [B, D]}: a trained encoder, frozen, and a map to another CLIP's space."""

    def __init__(self, config: ModelConfig, encoder: Encoder, encoder_dim: int, dim: int) -> None:
        """`encoder_dim` is the width of what the encoder predicts, `dim` that of the adapter's target."""
        super().__init__()
        self.target = config.target
        self.encoder = encoder.requires_grad_(False)
        widths = (encoder_dim, *config.adapter_dims)
        hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.GELU())]
        last = nn.Linear(widths[-1], dim)
        nn.init.xavier_uniform_(last.weight)
        nn.init.zeros_(last.bias)
        self.adapter = nn.Sequential(
            *hidden, last, nn.LayerNorm(dim) if config.adapter_norm else nn.Identity()
        )

    def forward(self, x_BV: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return unit rows [B, D] of the target."""
        return {self.target: unit_rows(self.adapter(self.encoder(x_BV)[self.encoder.target]))}

    def train(self, mode: bool = True) -> "ClipAdapter":
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self


class Inverse(nn.Module):
    """Unit embeddings [B, D] → voxels [B, v] (clip2fmri)."""

    def __init__(self, config: EncoderConfig, dim: int, kept_v: torch.Tensor) -> None:
        """`dim` is the embedding's width."""
        super().__init__()
        self.voxels = Voxels(kept_v)
        width, num_voxels = config.inverse_dim, len(kept_v)
        if config.inverse == "linear":
            self.net = nn.Sequential(nn.Linear(dim, num_voxels))
            return
        layers = [nn.Linear(dim, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(config.dropout)]
        if config.inverse == "residual":
            layers += [ResidualBlock(width, config.dropout) for _ in range(config.n_blocks)]
            layers.append(nn.LayerNorm(width))
        self.net = nn.Sequential(*layers, nn.Linear(width, num_voxels))

    def forward(self, embedding_BD: torch.Tensor) -> torch.Tensor:
        """Return the voxels [B, v] that are used."""
        return self.net(embedding_BD)


def _mlp(config: EncoderConfig, width: int) -> tuple[nn.Module, int]:
    """Per hidden layer: Linear → norm → activation → Dropout; and the last one's width."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise((width, *config.hidden_dims)):
        layers.append(nn.Linear(inner, outer))
        if config.norm != "none":
            layers.append(_NORMS[config.norm](outer))
        layers += [_ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
    return nn.Sequential(*layers), config.hidden_dims[-1] if config.hidden_dims else width


def _stage1(config: EncoderConfig, width: int) -> nn.Module:
    latent = config.latent_dim
    blocks = [ResidualBlock(latent, config.dropout) for _ in range(config.n_blocks)]
    stem = [nn.Linear(width, latent), nn.GELU(), nn.Dropout(config.dropout)]
    return nn.Sequential(*stem, *blocks, nn.LayerNorm(latent))


def _shared_head(config: EncoderConfig, width: int, num_targets: int) -> tuple[nn.Module, int]:
    """With several targets: one layer for all of them before their own."""
    if config.architecture != "two_stage" or num_targets == 1 or not config.shared_head:
        return nn.Identity(), width
    layers = nn.Linear(width, config.head_dim), nn.GELU(), nn.Dropout(0.5 * config.dropout)
    return nn.Sequential(*layers), config.head_dim


def _head(config: EncoderConfig, width: int, dim: int) -> nn.Module:
    if config.head == "linear":
        return nn.Linear(width, dim)
    inner = nn.Linear(width, config.head_dim), nn.GELU(), nn.Dropout(0.7 * config.dropout)
    return nn.Sequential(*inner, nn.Linear(config.head_dim, dim))
