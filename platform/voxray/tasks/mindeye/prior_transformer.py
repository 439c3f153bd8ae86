"""The transformer inside of the diffusion prior: multi-query attention on cosine similarity.

Layout of DALLE2-pytorch's, so that its published weights fit (DOMAINS.md S3.a): queries of all heads share
one key and one value per token, and a learnt null key and value; queries and keys are rotated by their
position (RoPE, arXiv 2104.09864) and brought to length 1 (arXiv 2010.04245); a bias per head depends on the
distance (T5, arXiv 1910.10683); SwiGLU feed-forward (arXiv 2002.05202), with a norm inside if `normformer`
(arXiv 2110.09456).

Shapes: B rows, N tokens, H heads, E numbers of a head, D of a token, K keys: N + 1, the null key first.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

COSINE_SCALE = 16.0  # of the similarities of unit queries and keys
ROTATED = 32  # so many numbers of a head are rotated at most
NUM_BUCKETS, MAX_DISTANCE = 32, 128  # of the position bias
NORM_EPS = 1e-5
KeysValues = tuple[torch.Tensor, torch.Tensor]  # [B, K, E] each; the keys rotated and of length 1


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of the transformer; defaults are those of the public MindEye prior."""

    dim: int = 768
    depth: int = 6
    heads: int = 12
    dim_head: int = 64
    feed_forward_mult: int = 4
    normformer: bool = False
    dropout: float = 0.0


class GainNorm(nn.Module):
    """LayerNorm with a gain and no bias, computed in float32 at least.

    `stable` divides by the largest number first, next to which the epsilon then counts.
    """

    def __init__(self, dim: int, stable: bool = False) -> None:
        """Begin with a gain of 1."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.stable = stable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., D] normalised."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.stable:
            wide = wide / wide.amax(dim=-1, keepdim=True).detach()
        return F.layer_norm(wide, self.gain.shape, self.gain, None, NORM_EPS).to(x.dtype)


class PositionBias(nn.Module):
    """A bias [H, N, K] for each head, query and key by T5's buckets of their distance.

    The first half of the buckets are distances one by one, the others grow as powers up to `MAX_DISTANCE`;
    keys after the query share bucket 0.
    """

    def __init__(self, heads: int) -> None:
        """Make the table [buckets, heads]."""
        super().__init__()
        self.table = nn.Embedding(NUM_BUCKETS, heads)

    def forward(self, num_tokens: int) -> torch.Tensor:
        """Return [H, N, N + 1]. A key's place counts the null key before it."""
        device = self.table.weight.device
        query_N1 = torch.arange(num_tokens, device=device)[:, None]
        key_K = torch.arange(num_tokens + 1, device=device)
        return self.table(_bucket((query_N1 - key_K).clamp(min=0))).permute(2, 0, 1)


def _bucket(distance: torch.Tensor) -> torch.Tensor:
    exact = NUM_BUCKETS // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (growth * (NUM_BUCKETS - exact)).long()).clamp(max=NUM_BUCKETS - 1)
    return torch.where(distance < exact, distance, far)


def rotate(x: torch.Tensor, start: int = 0, theta: float = 10_000.0) -> torch.Tensor:
    """Return x [..., N, E] with its first pairs of neighbouring numbers rotated by n · theta^(-2i/R), in
    float32 at least; n counts from `start`.
    """
    num_rotated = min(ROTATED, x.shape[-1])
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turned, rest = wide[..., :num_rotated], wide[..., num_rotated:]
    pair = torch.arange(0, num_rotated, 2, device=x.device, dtype=wide.dtype)
    place = torch.arange(start, start + x.shape[-2], device=x.device, dtype=wide.dtype)
    angle = place[:, None] * theta ** (-pair / num_rotated)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    both = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((both.flatten(-2), rest), dim=-1)


class MultiQueryAttention(nn.Module):
    """x [B, N, D] → [B, N, D]: heads of queries over one key and one value per token."""

    def __init__(self, shape: TransformerShape) -> None:
        """Make its layers."""
        super().__init__()
        inner = shape.heads * shape.dim_head
        self.heads, self.dropout = shape.heads, shape.dropout
        self.norm = GainNorm(shape.dim)
        self.null_key_value = nn.Parameter(torch.randn(2, shape.dim_head))
        self.to_query = nn.Linear(shape.dim, inner, bias=False)
        self.to_key_value = nn.Linear(shape.dim, 2 * shape.dim_head, bias=False)
        self.to_out = nn.Linear(inner, shape.dim, bias=False)
        self.out_norm = GainNorm(shape.dim)

    def forward(
        self, x_BND: torch.Tensor, bias_HNK: torch.Tensor, before: KeysValues | None = None
    ) -> tuple[torch.Tensor, KeysValues]:
        """Return [B, N, D], and keys and values [B, K, E].

        `bias_HNK` is added to the similarities; -inf hides a key. `before` are keys and values of the tokens
        before these, the null key first; they may be those of one row for all.
        """
        keys_KE, values_KE = self._null() if before is None else before
        start = keys_KE.shape[1] - 1
        x_BND = self.norm(x_BND)
        query_BHNE = self.to_query(x_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_BNE, value_BNE = self.to_key_value(x_BND).chunk(2, dim=-1)
        dtype = value_BNE.dtype
        key_BKE = _after(keys_KE, F.normalize(rotate(key_BNE, start), dim=-1).to(dtype))
        value_BKE = _after(values_KE, value_BNE)
        out_BHNE = F.scaled_dot_product_attention(
            F.normalize(rotate(query_BHNE, start), dim=-1).to(dtype),
            key_BKE[:, None].expand(-1, self.heads, -1, -1),
            value_BKE[:, None].expand(-1, self.heads, -1, -1),
            attn_mask=bias_HNK.to(dtype)[None],
            dropout_p=self.dropout if self.training else 0.0,
            scale=COSINE_SCALE,
        )
        out_BND = self.out_norm(self.to_out(out_BHNE.transpose(1, 2).flatten(-2)))
        return out_BND, (key_BKE, value_BKE)

    def _null(self) -> KeysValues:
        key_E, value_E = self.null_key_value
        return F.normalize(key_E, dim=-1)[None, None], value_E[None, None]


def _after(before_KE: torch.Tensor, rows_BNE: torch.Tensor) -> torch.Tensor:
    before_BKE = before_KE.to(rows_BNE.dtype).expand(len(rows_BNE), -1, -1)
    return torch.cat((before_BKE, rows_BNE), dim=1)


class FeedForward(nn.Module):
    """x [B, N, D] → [B, N, D]: norm, up, SwiGLU, down."""

    def __init__(self, shape: TransformerShape) -> None:
        """Make its layers."""
        super().__init__()
        inner = shape.feed_forward_mult * shape.dim
        self.norm = GainNorm(shape.dim)
        self.up = nn.Linear(shape.dim, 2 * inner, bias=False)
        self.inner_norm = GainNorm(inner) if shape.normformer else None
        self.dropout = nn.Dropout(shape.dropout)
        self.down = nn.Linear(inner, shape.dim, bias=False)

    def forward(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Return [B, N, D]."""
        value, gate = self.up(self.norm(x_BND)).chunk(2, dim=-1)
        inner = value * F.silu(gate)
        if self.inner_norm is not None:
            inner = self.inner_norm(inner)
        return self.down(self.dropout(inner))


class PriorLayer(nn.Module):
    """Attention and feed-forward, each added to what it was given."""

    def __init__(self, shape: TransformerShape) -> None:
        """Make both."""
        super().__init__()
        self.attention = MultiQueryAttention(shape)
        self.feed_forward = FeedForward(shape)

    def forward(
        self, x_BND: torch.Tensor, bias_HNK: torch.Tensor, before: KeysValues | None = None
    ) -> tuple[torch.Tensor, KeysValues]:
        """Return [B, N, D], and the attention's keys and values."""
        attended_BND, keys_values = self.attention(x_BND, bias_HNK, before)
        x_BND = x_BND + attended_BND
        return x_BND + self.feed_forward(x_BND), keys_values


class PriorTransformer(nn.Module):
    """Tokens [B, N, D] → [B, N, D]. If `causal`, a token sees itself, those before it and the null key."""

    def __init__(self, shape: TransformerShape, causal: bool) -> None:
        """Make its layers."""
        super().__init__()
        self.causal = causal
        self.position_bias = PositionBias(shape.heads)
        self.layers = nn.ModuleList(PriorLayer(shape) for _ in range(shape.depth))
        self.norm = GainNorm(shape.dim, stable=True)
        self.to_out = nn.Linear(shape.dim, shape.dim, bias=False)

    def forward(self, tokens_BND: torch.Tensor, common_PD: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens behind the last layer.

        `common_PD` are tokens before them that all rows have in common. A causal transformer computes those
        once for the whole batch: nothing of a row reaches them.
        """
        num_common = 0 if common_PD is None else len(common_PD)
        bias_HNK = self._bias(num_common + tokens_BND.shape[1])
        common_1PD = None if common_PD is None or not num_common else common_PD[None]
        assert self.causal or common_1PD is None, "what is common would see the rows"
        before = None
        for layer in self.layers:
            if common_1PD is not None:
                common_bias_HPK = bias_HNK[:, :num_common, : num_common + 1]
                common_1PD, before = layer(common_1PD, common_bias_HPK)
            tokens_BND, _ = layer(tokens_BND, bias_HNK[:, num_common:], before)
        return self.to_out(self.norm(tokens_BND))

    def _bias(self, num_tokens: int) -> torch.Tensor:
        bias_HNK = self.position_bias(num_tokens)
        if not self.causal:
            return bias_HNK
        hidden_NK = torch.ones(bias_HNK.shape[1:], dtype=torch.bool, device=bias_HNK.device).triu(2)
        return bias_HNK.masked_fill(hidden_NK, -math.inf)
