"""Which tokens a masked autoencoder sees: drawn per row, from that row's key alone.

Shapes: B rows, T groups of bands, L places (h · w), N = T · L tokens in band-major order (t · L + l), K kept.
"""

from dataclasses import dataclass

import torch

from voxray.core.randomness import key, uniform_rows

_KEY_BITS = 16  # of each of two draws: `uniform_rows` looks at 32 bits of a position


@dataclass(frozen=True)
class TokenGrid:
    """How a cube is cut: T groups of U bands, and height × width places of P = side² pixels each."""

    groups: int
    height: int
    width: int
    bands: int  # U, of one token
    side: int  # of a token, in pixels

    @property
    def places(self) -> int:
        """L."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """N."""
        return self.groups * self.places

    @property
    def values(self) -> int:
        """Numbers of one token: U · side²."""
        return self.bands * self.side**2

    def cut(self, cube_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] → [B, T, L, U, P]."""
        batch = cube_BCHW.shape[0]
        parts = cube_BCHW.reshape(
            batch, self.groups, self.bands, self.height, self.side, self.width, self.side
        )
        return parts.permute(0, 1, 3, 5, 2, 4, 6).reshape(
            batch, self.groups, self.places, self.bands, self.side**2
        )

    def join(self, tokens_BTLUP: torch.Tensor) -> torch.Tensor:
        """[B, T, L, U, P] → [B, C, H, W], the inverse of `cut`."""
        batch = tokens_BTLUP.shape[0]
        parts = tokens_BTLUP.reshape(
            batch, self.groups, self.height, self.width, self.bands, self.side, self.side
        )
        return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(
            batch, self.groups * self.bands, self.height * self.side, self.width * self.side
        )

    def cut_map(self, map_BHW: torch.Tensor) -> torch.Tensor:
        """[B, H, W] → [B, L, P], for what is one value per pixel."""
        batch = map_BHW.shape[0]
        parts = map_BHW.reshape(batch, self.height, self.side, self.width, self.side)
        return parts.permute(0, 1, 3, 2, 4).reshape(batch, self.places, self.side**2)


def num_kept(num: int, mask_ratio: float) -> int:
    """Return how many of `num` are kept: rounded, where upstream's `int(2400 * (1 - 0.8))` gives 479; at
    least one is kept, and at least one is hidden unless the ratio is 0.
    """
    if mask_ratio == 0:
        return num
    return min(max(round(num * (1 - mask_ratio)), 1), max(num - 1, 1))


def row_keys(sample_id: list[str]) -> list[int]:
    """Return the keys of rows outside of training: a sample has the same mask wherever it is evaluated."""
    return [key("mask", name) & 0xFFFFFFFF for name in sample_id]


def drawn_keys(seed: int, position_B: torch.Tensor) -> torch.Tensor:
    """Return training rows' keys int64 [B], from (seed, position)."""
    draws_B2 = (uniform_rows(seed, position_B, 2) * (1 << _KEY_BITS)).long()
    return (draws_B2[:, 0] << _KEY_BITS) | draws_B2[:, 1]


def kept_tokens(key_B: torch.Tensor, grid: TokenGrid, mask_ratio: float, strategy: str) -> torch.Tensor:
    """Return the tokens that are kept, int64 [B, K], ascending.

    random: of all tokens; spatial_tube: places, kept or hidden in all bands; spectral_tube: groups of bands,
    kept or hidden at all places.
    """
    groups_T = torch.arange(grid.groups, device=key_B.device)
    places_L = torch.arange(grid.places, device=key_B.device)
    if strategy == "spatial_tube":
        kept_BK = _lowest(key_B, grid.places, mask_ratio)
        return (groups_T[None, :, None] * grid.places + kept_BK[:, None]).flatten(1)
    if strategy == "spectral_tube":
        kept_BK = _lowest(key_B, grid.groups, mask_ratio)
        return (kept_BK[:, :, None] * grid.places + places_L).flatten(1)
    return _lowest(key_B, grid.tokens, mask_ratio)


def hidden_tokens(kept_BK: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Return which tokens are not kept, bool [B, T, L]."""
    hidden_BN = torch.ones(len(kept_BK), grid.tokens, dtype=torch.bool, device=kept_BK.device)
    return hidden_BN.scatter_(1, kept_BK, False).reshape(-1, grid.groups, grid.places)


def _lowest(key_B: torch.Tensor, num: int, mask_ratio: float) -> torch.Tensor:
    """Return the places of the lowest draws, as many as are kept."""
    noise_BN = uniform_rows(key("tokens"), key_B, num)
    order_BN = noise_BN.argsort(dim=1, stable=True)  # 24 bits: two draws may be equal
    return order_BN[:, : num_kept(num, mask_ratio)].sort(dim=1).values
