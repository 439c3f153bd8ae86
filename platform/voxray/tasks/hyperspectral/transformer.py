"""The vision transformer's block: pre-norm attention and MLP, with timm's parameter names.

x += Attn(LN(x)); x += MLP(LN(x)) (Dosovitskiy et al. 2021; He et al. 2022), LayerNorm's eps 1e-6, GELU.

Shapes: B rows, N tokens, D width, H heads, d = D / H.
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Self-attention over all tokens, scaled by d^-0.5."""

    def __init__(self, dim: int, num_heads: int) -> None:
        """`dim` is divided by `num_heads`."""
        super().__init__()
        assert dim % num_heads == 0, "checked with the config"
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """[B, N, D] → [B, N, D]."""
        batch, num, dim = x_BND.shape
        qkv = self.qkv(x_BND).reshape(batch, num, 3, self.num_heads, dim // self.num_heads)
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHNd = functional.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.proj(mixed_BHNd.transpose(1, 2).reshape(batch, num, dim))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        """`hidden_dim` is the width between."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """[B, N, D] → [B, N, D]."""
        return self.fc2(functional.gelu(self.fc1(x_BND)))


class Block(nn.Module):
    """One block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        """The MLP is `mlp_ratio` times as wide as the tokens."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """[B, N, D] → [B, N, D]."""
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class Blocks(nn.Module):
    """Blocks one after the other and a final LayerNorm; with `recompute` the backward pass makes the blocks'
    activations again instead of keeping them.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, recompute: bool) -> None:
        """`depth` blocks."""
        super().__init__()
        self.recompute = recompute
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """[B, N, D] → [B, N, D]."""
        for block in self.blocks:
            if self.recompute and self.training:
                x_BND = cast(torch.Tensor, checkpoint(block, x_BND, use_reentrant=False))
            else:
                x_BND = block(x_BND)
        return self.norm(x_BND)


def init_linear(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases for a Linear, as MAE has them; for `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
