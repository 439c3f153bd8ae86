"""The noise of a diffusion: its schedule, noising, and one step back (DDPM, arXiv 2006.11239; DDIM, arXiv
2010.02502).

With ᾱ_t the part of the variance that is signal at timestep t: x_t = √ᾱ_t · x_0 + √(1 - ᾱ_t) · noise.
"""

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

BetaSchedule = Literal["cosine", "linear"]
COSINE_OFFSET, MAX_BETA = 0.008, 0.999


def betas(schedule: BetaSchedule, timesteps: int) -> np.ndarray:
    """Return each timestep's share of new noise, float64 [timesteps].

    "cosine": ᾱ falls as cos²((t/T + 0.008) / 1.008 · π/2), shares clipped at 0.999 (arXiv 2102.09672 eq. 17).
    "linear": from 0.0001 to 0.02 at 1,000 timesteps, and as much in all at other numbers of them.
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        return np.linspace(scale * 1e-4, scale * 0.02, timesteps).clip(max=MAX_BETA)
    places = (np.arange(timesteps + 1) / timesteps + COSINE_OFFSET) / (1 + COSINE_OFFSET)
    signal = np.cos(places * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clip(0, MAX_BETA)


def signal_shares(schedule: BetaSchedule, timesteps: int) -> np.ndarray:
    """Return ᾱ of each timestep, float64 [timesteps]."""
    return np.cumprod(1 - betas(schedule, timesteps))


def add_noise(clean: torch.Tensor, noise: torch.Tensor, signal_B: torch.Tensor) -> torch.Tensor:
    """Return the noised rows [B, …] for each row's ᾱ."""
    signal = _beside(signal_B, clean)
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise


def clean_from_noise(noised: torch.Tensor, noise: torch.Tensor, signal_B: torch.Tensor) -> torch.Tensor:
    """Return x_0 of the noised rows [B, …] and their noise."""
    signal = _beside(signal_B, noised)
    return (noised - (1 - signal).sqrt() * noise) / signal.sqrt()


def _beside(signal_B: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return signal_B.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))


def visited(timesteps: int, steps: int) -> list[tuple[int, int]]:
    """Return (timestep, the next one) for each of `steps` steps from the last timestep down; -1 is the end.

    Timesteps are evenly spaced, and the first one visited is the one with the most noise ("trailing" of arXiv
    2305.08891).
    """
    places = [round(timesteps * (steps - i) / steps) - 1 for i in range(steps + 1)]
    return list(pairwise(places))


def step_back(
    noised: torch.Tensor,
    clean: torch.Tensor,
    signal: float,
    next_signal: float,
    eta: float,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Return x at the next timestep from x_t and the predicted x_0 (DDIM eq. 12 and 16).

    eta 0 adds no noise; eta 1 draws from q(x_next | x_t, x_0), which is DDPM's step.
    """
    predicted_noise = (noised - math.sqrt(signal) * clean) / math.sqrt(1 - signal)
    sigma = eta * math.sqrt((1 - next_signal) / (1 - signal) * (1 - signal / next_signal))
    direction = math.sqrt(max(0.0, 1 - next_signal - sigma**2))
    moved = math.sqrt(next_signal) * clean + direction * predicted_noise
    return moved if noise is None else moved + sigma * noise
