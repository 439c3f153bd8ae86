"""The diffusion prior: from the brain's embedding to samples of CLIP image embeddings (DOMAINS.md S3.a).

Embeddings are diffused at `image_embed_scale` times their size, so that a unit vector of D numbers has about
unit variance in each at √D. Sampling gives them back at their own size.

Shapes: B rows, T tokens, D numbers of a token; an embedding is [B, D] or, of several tokens, [B, T, D].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from voxray.config.errors import InputError
from voxray.tasks.mindeye.diffusion import (
    BetaSchedule,
    add_noise,
    clean_from_noise,
    signal_shares,
    step_back,
    visited,
)
from voxray.tasks.mindeye.prior_network import AnyPriorNetwork

Method = Literal["ddpm", "ddim"]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class PriorDraws:
    """The random part of a training step: timestep int64 [B], noise as the target, and which rows keep the
    brain's and the noised embedding, bool [B].
    """

    timestep_B: torch.Tensor
    noise: torch.Tensor
    keep_brain_B: torch.Tensor
    keep_image_B: torch.Tensor


class PriorLoss(NamedTuple):
    """Mean squared error of each row [B], at the diffusion's scale, and the predicted embeddings at their own
    size.
    """

    error_B: torch.Tensor
    predicted: torch.Tensor


class DiffusionPrior(nn.Module):
    """A network that denoises embeddings given the brain's, with the diffusion around it."""

    signal_T: torch.Tensor

    def __init__(
        self,
        network: AnyPriorNetwork,
        timesteps: int = 1000,
        condition_dropout: float = 0.2,
        image_embed_scale: float | None = None,
        predict_x0: bool = True,
        beta_schedule: BetaSchedule = "cosine",
    ) -> None:
        """`condition_dropout` is the probability with which a row lacks the brain's embedding, and that with
        which it lacks the noised one; `image_embed_scale` is √D by default. Without `predict_x0` the network
        predicts the noise.

        Raises InputError for a network whose table of timesteps has another number of them.
        """
        super().__init__()
        known = network.learned_timesteps
        if known is not None and known != timesteps:
            raise InputError(
                f"the prior's network has a table of {known} timesteps, the diffusion {timesteps}; set "
                f"timesteps={known}"
            )
        self.network, self.timesteps, self.predict_x0 = network, timesteps, predict_x0
        self.condition_dropout = condition_dropout
        self.scale = math.sqrt(network.dim) if image_embed_scale is None else image_embed_scale
        self.signal = tuple(float(share) for share in signal_shares(beta_schedule, timesteps))
        self.register_buffer("signal_T", torch.tensor(self.signal), persistent=False)

    def draw(self, target: torch.Tensor, generator: torch.Generator | None = None) -> PriorDraws:
        """Return random numbers for targets like this one; by default from torch's global generator."""
        num, device = len(target), target.device
        return PriorDraws(
            timestep_B=torch.randint(self.timesteps, (num,), device=device, generator=generator),
            noise=torch.randn(target.shape, device=device, generator=generator),
            keep_brain_B=torch.rand(num, device=device, generator=generator) >= self.condition_dropout,
            keep_image_B=torch.rand(num, device=device, generator=generator) >= self.condition_dropout,
        )

    def loss(
        self,
        brain: torch.Tensor,
        target: torch.Tensor,
        draws: PriorDraws | None = None,
        generator: torch.Generator | None = None,
    ) -> PriorLoss:
        """Return the error of each row and the predicted embeddings, for targets at their own size.

        Without `draws` they come from `generator`, or torch's global one.
        """
        draws = self.draw(target, generator) if draws is None else draws
        clean = target.float() * self.scale
        signal_B = self.signal_T[draws.timestep_B]
        noised = add_noise(clean, draws.noise, signal_B)
        answer = self.network(noised, draws.timestep_B, brain, draws.keep_brain_B, draws.keep_image_B).float()
        wanted = clean if self.predict_x0 else draws.noise
        predicted = answer if self.predict_x0 else clean_from_noise(noised, answer, signal_B)
        return PriorLoss((answer - wanted).square().flatten(1).mean(1), predicted / self.scale)

    @torch.no_grad()
    def sample(
        self,
        brain: torch.Tensor,
        steps: int | None = None,
        guidance: float = 1.0,
        method: Method = "ddpm",
        generator: Generators = None,
        n: int = 1,
    ) -> torch.Tensor:
        """Return `n` samples for each row, [B, n, D] or [B, n, T, D].

        `steps` timesteps are visited, by default all. "ddpm" adds noise in each step, "ddim" in none; "ddpm"
        in fewer steps than timesteps is DDIM at eta 1. A list of generators has one for each row, whose
        samples then depend on no other row; noise is drawn on a generator's own device.

        Raises InputError for more steps than timesteps, and for guidance other than 1 of a prior that was
        trained without dropping conditions.
        """
        steps = self.timesteps if steps is None else steps
        self._check(steps, guidance)
        shape = (len(brain), n, *brain.shape[1:])
        flat_brain = brain.repeat_interleave(n, 0)
        x = _normal(shape, generator, brain.device).flatten(0, 1)
        for timestep, next_timestep in visited(self.timesteps, steps):
            clean = self._denoised(x, timestep, flat_brain, guidance)
            if next_timestep < 0:
                x = clean
                continue
            noise = _normal(shape, generator, brain.device).flatten(0, 1) if method == "ddpm" else None
            eta = 1.0 if method == "ddpm" else 0.0
            signal, next_signal = self.signal[timestep], self.signal[next_timestep]
            x = step_back(x, clean, signal, next_signal, eta, noise)
        return (x / self.scale).unflatten(0, (len(brain), n))

    def _denoised(self, x: torch.Tensor, timestep: int, brain: torch.Tensor, guidance: float) -> torch.Tensor:
        timestep_B = torch.full((len(x),), timestep, device=x.device)
        answer = self.network.guided(x, timestep_B, brain, guidance).float()
        return answer if self.predict_x0 else clean_from_noise(x, answer, self.signal_T[timestep_B])

    def _check(self, steps: int, guidance: float) -> None:
        if not 1 <= steps <= self.timesteps:
            raise InputError(
                f"the prior has {self.timesteps} timesteps, so it samples in 1 to {self.timesteps} steps, "
                f"not in {steps}"
            )
        if guidance != 1.0 and not self.condition_dropout:
            raise InputError(
                f"guidance {guidance} needs a prior that was trained with condition_dropout above 0; sample "
                "with guidance 1"
            )


def _normal(shape: tuple[int, ...], generator: Generators, device: torch.device) -> torch.Tensor:
    """Return standard normal numbers, row by row where each row has its own generator."""
    if generator is None:
        return torch.randn(shape, device=device)
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device).to(device)
    assert len(generator) == shape[0], (len(generator), shape)
    rows = [torch.randn(shape[1:], generator=own, device=own.device) for own in generator]
    return torch.stack(rows).to(device)
