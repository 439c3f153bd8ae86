"""voxel2clip: voxels to CLIP embeddings by a residual MLP, and the projector for the contrastive loss.

Both forms of fMRI-reconstruction-NSD (DOMAINS.md S3.a): that of its first runs (`norm="bn"`, the activation
first, no projector, one token) and that of its release (`norm="ln"`, projector, 1 or 257 tokens).

Shapes: B rows, V voxels, H hidden width, T tokens, D numbers of a token.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Norm = Literal["bn", "ln"]


class BrainLayer(nn.Module):
    """Linear, norm, activation and dropout, or the activation before the norm.

    "bn" is BatchNorm1d with ReLU, "ln" is LayerNorm with GELU.
    """

    def __init__(self, in_dim: int, hidden: int, norm: Norm, act_first: bool, dropout: float) -> None:
        """Make its parts."""
        super().__init__()
        self.linear = nn.Linear(in_dim, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm == "bn" else nn.LayerNorm(hidden)
        self.act = nn.ReLU() if norm == "bn" else nn.GELU()
        self.act_first = act_first
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BV: torch.Tensor) -> torch.Tensor:
        """Return [B, H]."""
        x_BH = self.linear(x_BV)
        x_BH = self.norm(self.act(x_BH)) if self.act_first else self.act(self.norm(x_BH))
        return self.dropout(x_BH)


class Projector(nn.Module):
    """An MLP over each token, whose output the contrastive loss compares: LN, GELU, Linear, three times."""

    def __init__(self, width: int, hidden: int) -> None:
        """Make its layers, `hidden` wide inside."""
        super().__init__()
        widths = (width, hidden, hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in widths[:-1])
        self.linears = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(3))

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] (or [B, D] for [B, D])."""
        for norm, linear in zip(self.norms, self.linears, strict=True):
            tokens_BTD = linear(F.gelu(norm(tokens_BTD)))
        return tokens_BTD


class BrainNetwork(nn.Module):
    """Voxels [B, V] → (embedding, its projection): [B, D] each, or [B, T, D] where `tokens` is not 1.

    The prior gets the embedding, the contrastive loss its projection; without a projector that is None.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 768,
        hidden: int = 4096,
        n_blocks: int = 4,
        norm: Norm = "ln",
        act_first: bool = False,
        projector: bool = True,
        tokens: int = 1,
        projector_hidden: int = 2048,
        first_dropout: float = 0.5,
        block_dropout: float = 0.15,
    ) -> None:
        """`in_dim` voxels; `out_dim` numbers of each of `tokens` tokens."""
        super().__init__()
        self.out_dim, self.tokens = out_dim, tokens
        self.first = BrainLayer(in_dim, hidden, norm, act_first, first_dropout)
        self.blocks = nn.ModuleList(
            BrainLayer(hidden, hidden, norm, act_first, block_dropout) for _ in range(n_blocks)
        )
        self.out = nn.Linear(hidden, tokens * out_dim)
        self.projector = Projector(out_dim, projector_hidden) if projector else None

    def forward(self, voxels_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the embedding and its projection."""
        x_BH = self.first(voxels_BV)
        for block in self.blocks:
            x_BH = x_BH + block(x_BH)
        embedding = self.out(x_BH)
        if self.tokens > 1:
            embedding = embedding.unflatten(-1, (self.tokens, self.out_dim))
        return embedding, None if self.projector is None else self.projector(embedding)
