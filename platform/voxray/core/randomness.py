"""Keys of random choices: hash(seed, stage, epoch, position), so no generator's state is part of a
checkpoint.
"""

import hashlib

import torch


def key(*parts: int | str) -> int:
    """Return a 63-bit integer that depends on every part and on nothing else (BLAKE2b)."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def reseed(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`.

    `torch.manual_seed` seeds those of all devices, and formats the call stack for each that is not in use
    yet: 0.6 ms on a machine without a GPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def uniform_rows(seed: int, position_B: torch.Tensor, num: int) -> torch.Tensor:
    """Return [B, num] uniforms in [0, 1): row i depends on (seed, position_B[i]) alone, on any device or
    worker count.

    A counter-based generator: three rounds of the 32-bit finaliser of MurmurHash3 over (seed, position,
    column).
    """
    column_N = torch.arange(num, device=position_B.device, dtype=torch.int64)
    state_BN = (position_B.to(torch.int64)[:, None] * 0x9E3779B1 + column_N[None] * 0x85EBCA77) & 0xFFFFFFFF
    for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, 0x27D4EB2F):
        state_BN = _murmur_finaliser(state_BN ^ word)
    return (state_BN >> 8).to(torch.float32) / float(1 << 24)


def places_rows(seed: int, position_B: torch.Tensor, num_B: torch.Tensor) -> torch.Tensor:
    """Return int64 [B]: one of the places 0 … num_B[i] - 1 of each row, keyed as `uniform_rows` are."""
    uniform_B = uniform_rows(seed, position_B, 1)[:, 0]
    num_B = num_B.clamp(min=1)
    return (uniform_B * num_B).long().clamp(max=num_B - 1)


def normal_rows(seed: int, position_B: torch.Tensor, num: int) -> torch.Tensor:
    """Return [B, num] standard normal numbers, keyed as those of `uniform_rows`, by the inverse of their
    distribution; with 24 bits none is beyond 5.5.
    """
    half_step = 2.0**-25
    u_BN = uniform_rows(seed, position_B, num).double() + half_step
    return (2**0.5 * torch.erfinv(2 * u_BN - 1)).float()


def _murmur_finaliser(state: torch.Tensor) -> torch.Tensor:
    mask = 0xFFFFFFFF
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & mask
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & mask
    return state ^ (state >> 16)
