"""A frozen variational autoencoder of diffusers (AutoencoderKL): pictures of any size → latents.

A latent is the mode of the encoder's distribution times the autoencoder's scaling factor, as Stable Diffusion
denoises it (0.18215 in its first version). Weights are read from safetensors only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

# Shape letters: B pictures, C channels of a latent, S side in pixels, h × w latent pixels.


class VaeLatents:
    """Uint8 RGB pictures `pixels` [H, W, 3] → `vae_latent` float32 [C, h, w]: the central square, resized to
    `side` pixels (bilinear, antialiased).
    """

    def __init__(
        self, model_id: str, revision: str, dtype: str, device: str, side: int, subfolder: str = ""
    ) -> None:
        """Load it. Raises OSError when it is not there."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        self._dtype, self._device, self._side = getattr(torch, dtype), device, side
        options: dict[str, Any] = {"revision": revision} if revision else {}
        model: Any = AutoencoderKL.from_pretrained(
            model_id, subfolder=subfolder or None, dtype=self._dtype, use_safetensors=True, **options
        )
        self._model = model.to(device).eval().requires_grad_(False)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the latents of B pictures, rows first; one at a time, as 512 pixels need much memory."""
        latents = [self._latent(pixels_HW3) for pixels_HW3 in columns["pixels"]]
        return {"vae_latent": np.concatenate(latents)}

    @torch.inference_mode()
    def _latent(self, pixels_HW3: np.ndarray) -> np.ndarray:
        side = min(pixels_HW3.shape[:2])
        top, left = ((size - side) // 2 for size in pixels_HW3.shape[:2])
        square = np.ascontiguousarray(pixels_HW3[top : top + side, left : left + side])
        seen_13SS = F.interpolate(
            torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255,
            (self._side, self._side),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        made = self._model.encode((2 * seen_13SS - 1).to(self._device, self._dtype)).latent_dist.mode()
        return (made.float() * self._model.config.scaling_factor).cpu().numpy()
