"""CLIP's vision tower, frozen: pictures of any size → the embedding, and the CLS token after chosen blocks.

Any CLIPVisionModelWithProjection of transformers, by a hub's id or a folder. Pictures are prepared as CLIP's
authors do (openai/CLIP, `_transform`): the short side resized (bicubic, antialiased, by Pillow), the centre
cut out, each channel normalised; sizes and numbers are those of the folder's `preprocessor_config.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

# Shape letters: B batch, C channels, H height, W width, D width of an output.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = "preprocessor_config.json"


class ClipVision:
    """Uint8 RGB pictures `pixels` [H, W, 3] → `<prefix>final` [D] and `<prefix>layer_K` [W], float32.

    `layers` are numbers of blocks, from 1, joined by commas. layer_K is the CLS token as block K leaves it in
    the residual stream: no LayerNorm, no projection. Nothing is brought to unit length. `side` is that of the
    pictures that the tower sees.
    """

    def __init__(
        self, model_id: str, revision: str, dtype: str, device: str, layers: str = "", prefix: str = "clip_"
    ) -> None:
        """Load the tower. Raises OSError when it is not there, ValueError for a block it does not have."""
        from transformers import CLIPVisionModelWithProjection

        self._dtype, self._device = getattr(torch, dtype), device
        options: dict[str, Any] = {} if Path(model_id).is_dir() else {"revision": revision}
        model: Any = CLIPVisionModelWithProjection.from_pretrained(model_id, dtype=self._dtype, **options)
        self._model = model.to(device).eval().requires_grad_(False)
        self._layers = tuple(int(layer) for layer in layers.split(",") if layer)
        num_blocks = int(model.config.num_hidden_layers)
        if wrong := [layer for layer in self._layers if not 1 <= layer <= num_blocks]:
            raise ValueError(f"it has the blocks 1 … {num_blocks}, none is {wrong[0]}")
        self._prefix = prefix
        said = _said(model_id, revision)
        self._short, self.side, self._mean, self._std = _sizes(said, int(model.config.image_size))

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs of B pictures, rows first."""
        pixels_BCHW = np.stack([self._prepared(picture) for picture in columns["pixels"]])
        with torch.inference_mode():
            made = self._model(
                pixel_values=torch.from_numpy(pixels_BCHW).to(self._device, self._dtype),
                output_hidden_states=bool(self._layers),
            )
        out = {f"{self._prefix}final": made.image_embeds}
        for layer in self._layers:  # entry 0 is what goes into block 1
            out[f"{self._prefix}layer_{layer}"] = made.hidden_states[layer][:, 0]
        return {name: values.float().cpu().numpy() for name, values in out.items()}

    def _prepared(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """Return float32 [3, side, side]."""
        cut_HWC = resized_centre(pixels_HWC, self._short, self.side)
        values_HWC = (cut_HWC.astype(np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(values_HWC.transpose(2, 0, 1), np.float32)


def resized_centre(pixels_HWC: np.ndarray, short: int, side: int) -> np.ndarray:
    """Return uint8 [side, side, 3]: the short side made `short` long, the centre cut out, black around it
    where it is smaller.
    """
    height, width, _ = pixels_HWC.shape
    size = (short, short * height // width) if width <= height else (short * width // height, short)
    image = Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def _said(model_id: str, revision: str) -> Mapping[str, Any]:
    """Return what the preprocessor's file says; nothing where a folder has none."""
    from transformers import CLIPImageProcessor

    if Path(model_id).is_dir():
        path = Path(model_id, PREPROCESSOR)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return CLIPImageProcessor.get_image_processor_dict(model_id, revision=revision)[0]


def _sizes(said: Mapping[str, Any], image_size: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Return the short side after resizing, the side of the centre, mean and std [3]."""
    short, side = _side(said.get("size", image_size)), _side(said.get("crop_size", image_size))
    mean: Sequence[float] = said.get("image_mean", MEAN)
    std: Sequence[float] = said.get("image_std", STD)
    return short, side, np.array(mean, np.float32), np.array(std, np.float32)


def _side(said: int | Mapping[str, int]) -> int:
    """Return a side that is written as a number, or under its name."""
    return said if isinstance(said, int) else int(said.get("shortest_edge") or said["height"])
