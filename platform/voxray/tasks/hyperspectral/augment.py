"""Augmentation of training cubes on their device: cube, measured pixels and classes move together.

Geometry takes the nearest pixel, so spectra stay whole; only `noise_std` changes their values. A row's
choices depend on (key, its place in the order) alone. Shapes: B rows, C bands, H × W pixels.
"""

import math

import torch
from torch.nn.functional import affine_grid, grid_sample

from voxray.core.randomness import key as key_of
from voxray.core.randomness import normal_rows, uniform_rows
from voxray.tasks.hyperspectral.config import HyperspectralDataConfig

SHARE = 0.5  # spectraleye: of the cubes that are changed at all, and of those that are flipped

Layers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # cube [B, C, H, W], measured and classes [B, H, W]


def turned_and_flipped(layers: Layers, position_B: torch.Tensor, key: int) -> Layers:
    """Flip and turn by right angles; images that are not square by 0° and 180° alone."""
    draws_B2 = uniform_rows(key_of(key, "basic"), position_B, 2)
    height, width = layers[0].shape[-2:]
    is_square = height == width
    flips_B = draws_B2[:, 0] < SHARE
    turns_B = (draws_B2[:, 1] * (4 if is_square else 2)).long() * (1 if is_square else 2)
    cube, measured, classes = (_basic(layer, flips_B, turns_B) for layer in layers)
    return cube, measured, classes


def _basic(layer: torch.Tensor, flips_B: torch.Tensor, turns_B: torch.Tensor) -> torch.Tensor:
    shape = (-1, *[1] * (layer.ndim - 1))
    result = torch.where(flips_B.reshape(shape), layer.flip(-1), layer)
    for turn in (1, 2, 3):
        if layer.shape[-1] == layer.shape[-2] or turn == 2:
            result = torch.where(
                (turns_B == turn).reshape(shape), torch.rot90(result, turn, (-2, -1)), result
            )
    return result


def spectraleye(
    layers: Layers, position_B: torch.Tensor, key: int, config: HyperspectralDataConfig
) -> Layers:
    """Flip, shift, turn, scale and add noise to half of the cubes (DOMAINS.md S2.c). What comes in from
    outside of the image is not measured; there the cube is what background is.
    """
    cube_BCHW, measured_BHW, classes_BHW = layers
    draws_B6 = uniform_rows(key_of(key, "spectraleye"), position_B, 6)
    is_changed_B = draws_B6[:, 0] < SHARE
    grid_BHW2 = affine_grid(_matrices(draws_B6[:, 1:], config), list(cube_BCHW.shape), align_corners=False)
    outside = 1.0 if config.prepare.intensity == "log10" else 0.0
    moved_cube = _nearest(cube_BCHW - outside, grid_BHW2) + outside
    maps_B2HW = _nearest(torch.stack([measured_BHW, classes_BHW], 1).to(torch.float32), grid_BHW2)
    if config.noise_std:
        flat_BX = normal_rows(key_of(key, "noise"), position_B, cube_BCHW[0].numel())
        noise_BCHW = flat_BX.reshape(cube_BCHW.shape) * (maps_B2HW[:, :1] > 0)
        moved_cube = moved_cube + config.noise_std * noise_BCHW
    changed = is_changed_B[:, None, None]
    return (
        torch.where(changed[:, None], moved_cube, cube_BCHW),
        torch.where(changed, maps_B2HW[:, 0] > 0, measured_BHW),
        torch.where(changed, maps_B2HW[:, 1].round().to(classes_BHW.dtype), classes_BHW),
    )


def _matrices(draws_B5: torch.Tensor, config: HyperspectralDataConfig) -> torch.Tensor:
    """Return affine maps from the new image's coordinates (-1 … 1) to the old one's, [B, 2, 3]."""
    flip_B = torch.where(draws_B5[:, 0] < SHARE, -1.0, 1.0)
    shift_B2 = (draws_B5[:, 1:3] * 2 - 1) * 2 * config.shift
    angle_B = (draws_B5[:, 3] * 2 - 1) * math.radians(config.rotate_deg)
    size_B = 1 + (draws_B5[:, 4] * 2 - 1) * config.zoom
    cos_B, sin_B = angle_B.cos() / size_B, angle_B.sin() / size_B
    rows = [cos_B * flip_B, -sin_B, shift_B2[:, 0], sin_B * flip_B, cos_B, shift_B2[:, 1]]
    return torch.stack(rows, 1).reshape(-1, 2, 3)


def _nearest(values: torch.Tensor, grid_BHW2: torch.Tensor) -> torch.Tensor:
    return grid_sample(values, grid_BHW2, mode="nearest", padding_mode="zeros", align_corners=False)
