"""A frozen CLIP tower over augmented views of pictures, as MindEye augments before CLIP (DOMAINS.md S3.b).

A picture's views depend on the picture, the seed and the view's number alone, so they are the same in any
company and on any machine with the same torchvision.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchvision.transforms import v2

from voxray.nn.clip_vision import ClipVision

# Shape letters: B pictures, K views, C channels, H height, W width, D width of an output.
CROP_AREA = (0.6, 1.0)  # share of the picture that a cropped view shows
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
CROP, FLIP, COLOUR, GREY = 0.3, 0.5, 0.3, 0.3  # how often each is done


class ClipViews:
    """Uint8 RGB pictures `pixels` [H, W, 3] → `<prefix>final` [K, D], float32, and so on for `layers`, as
    `ClipVision` gives them of each of K views.
    """

    def __init__(
        self,
        model_id: str,
        revision: str,
        dtype: str,
        device: str,
        num_views: int,
        seed: int,
        layers: str = "",
        prefix: str = "views_",
    ) -> None:
        """Load the tower. Raises OSError when it is not there, ValueError for a block it does not have."""
        self._tower = ClipVision(model_id, revision, dtype, device, layers, prefix)
        self._augment = augmentation(self._tower.side)
        self._num_views, self._seed = num_views, seed

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs of B pictures, [B, K, D] each."""
        made = [
            self._tower({"pixels": [self._view(picture, number) for picture in columns["pixels"]]})
            for number in range(self._num_views)
        ]
        return {name: np.stack([view[name] for view in made], axis=1) for name in made[0]}

    def _view(self, pixels_HWC: np.ndarray, number: int) -> np.ndarray:
        return drawn_view(self._augment, pixels_HWC, self._seed, number)


def augmentation(side: int) -> v2.Transform:
    """Return MindEye's augmentation of a square uint8 picture [3, H, W]: → [3, side, side].

    Pictures are resized as CLIP's authors do (bicubic), so that a view that nothing happened to is what the
    tower sees of the picture itself.
    """
    size, bicubic = (side, side), v2.InterpolationMode.BICUBIC
    return v2.Compose(
        [
            v2.RandomApply([v2.RandomResizedCrop(size, scale=CROP_AREA, interpolation=bicubic)], p=CROP),
            v2.Resize(size, interpolation=bicubic),
            v2.RandomHorizontalFlip(FLIP),
            v2.RandomApply([v2.ColorJitter(**JITTER)], p=COLOUR),
            v2.RandomGrayscale(GREY),
        ]
    )


def drawn_view(augment: v2.Transform, pixels_HWC: np.ndarray, seed: int, number: int) -> np.ndarray:
    """Return view `number` of a picture's central square, uint8 [side, side, 3].

    torchvision draws from torch's global generator, which is put back afterwards.
    """
    side = min(pixels_HWC.shape[:2])
    top, left = ((size - side) // 2 for size in pixels_HWC.shape[:2])
    square_HWC = pixels_HWC[top : top + side, left : left + side]
    digest = hashlib.blake2b(f"{seed}/{number}/".encode() + square_HWC.tobytes(), digest_size=8).digest()
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        view_CHW: torch.Tensor = augment(torch.tensor(square_HWC.transpose(2, 0, 1)))
    return view_CHW.numpy().transpose(1, 2, 0)
