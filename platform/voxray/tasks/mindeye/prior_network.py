"""The two networks of the diffusion prior: a noised embedding, its timestep and the brain's embedding in, the
clean embedding out (DOMAINS.md S3.a).

* `PriorNetwork`, one embedding: the unCLIP prior (arXiv 2204.06125). Its tokens are the padding of a text
  that there is none of, the brain's embedding, the timestep, the noised embedding and a learnt query; it is
  causal, and the query's place holds the answer.
* `TokenPriorNetwork`, CLIP's 257 hidden tokens: brain tokens, the timestep, noised tokens; every token sees
  every other, and the noised tokens' places hold the answer.

Where a row's condition is dropped, learnt null embeddings take its place.

Shapes: B rows, T tokens of an embedding, D numbers of a token; an embedding is [B, D] or [B, T, D].
"""

import math

import torch
from torch import nn

from voxray.tasks.mindeye.prior_transformer import PriorTransformer, TransformerShape

NUM_PADDING = 256  # text tokens of the public prior, all of them padding here


class TimestepEmbedding(nn.Module):
    """Timesteps [B] → [B, D]: sines and cosines of frequencies from 1 to 1/10,000, then an MLP."""

    def __init__(self, dim: int) -> None:
        """Make the MLP, twice as wide inside."""
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2 * dim),
            nn.SiLU(),
            nn.Linear(2 * dim, 2 * dim),
            nn.SiLU(),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, timestep_B: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        dtype = next(self.mlp.parameters()).dtype
        half = self.dim // 2
        place = torch.arange(half, device=timestep_B.device, dtype=torch.float32)
        angle = timestep_B[:, None].float() * torch.exp(place * (-math.log(10_000) / (half - 1)))
        return self.mlp(torch.cat((angle.sin(), angle.cos()), dim=-1).to(dtype))


class _ConditionedNetwork(nn.Module):
    """What both networks have: null embeddings, the timestep's embedding, the transformer."""

    def __init__(
        self, tokens: int, shape: TransformerShape, causal: bool, learned_timesteps: int | None
    ) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, shape.dim
        if learned_timesteps is None:
            self.timestep: nn.Module = TimestepEmbedding(shape.dim)
        else:
            self.timestep = nn.Embedding(learned_timesteps, shape.dim)
        self.learned_timesteps = learned_timesteps
        self.null_brain = nn.Parameter(torch.randn(tokens, shape.dim))
        self.null_image = nn.Parameter(torch.randn(tokens, shape.dim))
        self.transformer = PriorTransformer(shape, causal)

    def forward(
        self,
        noised: torch.Tensor,
        timestep_B: torch.Tensor,
        brain: torch.Tensor,
        keep_brain_B: torch.Tensor | None = None,
        keep_image_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the answer; rows where a `keep` is False get the null embedding instead of that input."""
        shape = (len(noised), self.tokens, self.dim)
        brain_BTD = _kept(brain.to(noised.dtype).reshape(shape), self.null_brain, keep_brain_B)
        noised_BTD = _kept(noised.reshape(shape), self.null_image, keep_image_B)
        return self._answer(brain_BTD, self.timestep(timestep_B).to(noised.dtype)[:, None], noised_BTD)

    def _answer(
        self, brain_BTD: torch.Tensor, time_B1D: torch.Tensor, noised_BTD: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError

    def guided(
        self,
        noised: torch.Tensor,
        timestep_B: torch.Tensor,
        brain: torch.Tensor,
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """Return null + (conditioned - null) · guidance (classifier-free guidance, arXiv 2207.12598).

        As in the public prior, the null answer sees neither the brain's embedding nor the noised one.
        At guidance 1 that is the conditioned answer, and only that is computed.
        """
        conditioned = self(noised, timestep_B, brain)
        if guidance == 1.0:
            return conditioned
        nothing_B = torch.zeros(len(noised), dtype=torch.bool, device=noised.device)
        null = self(noised, timestep_B, brain, keep_brain_B=nothing_B, keep_image_B=nothing_B)
        return null + (conditioned - null) * guidance


class PriorNetwork(_ConditionedNetwork):
    """One embedding: (noised [B, D], timestep [B], brain [B, D]) → [B, D].

    `learned_timesteps` is the number of timesteps of a table of their embeddings, as the public LAION prior
    has; None for sines and an MLP.
    """

    def __init__(
        self,
        shape: TransformerShape | None = None,
        num_padding: int = NUM_PADDING,
        learned_timesteps: int | None = None,
    ) -> None:
        """Make its parts; `num_padding` tokens stand where the unCLIP prior has the text's."""
        shape = shape or TransformerShape()
        super().__init__(1, shape, causal=True, learned_timesteps=learned_timesteps)
        self.padding = nn.Parameter(torch.randn(num_padding, shape.dim))
        self.query = nn.Parameter(torch.randn(shape.dim))

    def _answer(
        self, brain_BTD: torch.Tensor, time_B1D: torch.Tensor, noised_BTD: torch.Tensor
    ) -> torch.Tensor:
        query_B1D = self.query.to(noised_BTD.dtype).expand(len(noised_BTD), 1, -1)
        tokens = torch.cat((brain_BTD, time_B1D, noised_BTD, query_B1D), dim=1)
        return self.transformer(tokens, self.padding.to(noised_BTD.dtype))[:, -1]


class TokenPriorNetwork(_ConditionedNetwork):
    """Embeddings of several tokens: (noised [B, T, D], timestep [B], brain [B, T, D]) → [B, T, D]."""

    def __init__(
        self,
        tokens: int = 257,
        shape: TransformerShape | None = None,
        learned_timesteps: int | None = None,
    ) -> None:
        """Make its parts; a learnt place [T, D] is added to the noised tokens."""
        shape = shape or TransformerShape()
        super().__init__(tokens, shape, causal=False, learned_timesteps=learned_timesteps)
        self.place = nn.Parameter(torch.randn(tokens, shape.dim) * shape.dim**-0.5)

    def _answer(
        self, brain_BTD: torch.Tensor, time_B1D: torch.Tensor, noised_BTD: torch.Tensor
    ) -> torch.Tensor:
        placed_BTD = noised_BTD + self.place.to(noised_BTD.dtype)
        return self.transformer(torch.cat((brain_BTD, time_B1D, placed_BTD), dim=1))[:, -self.tokens :]


AnyPriorNetwork = PriorNetwork | TokenPriorNetwork


def _kept(rows_BTD: torch.Tensor, null_TD: torch.Tensor, keep_B: torch.Tensor | None) -> torch.Tensor:
    # every answer depends on the null embeddings, so that no worker lacks their gradient
    keep_B = rows_BTD.new_ones(len(rows_BTD), dtype=torch.bool) if keep_B is None else keep_B
    return torch.where(keep_B[:, None, None], rows_BTD, null_TD.to(rows_BTD.dtype))
