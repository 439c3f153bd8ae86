"""Reflectance on the scale that SpectralEye's models take: 0.1 % is 0, 100 % is 1, background is 1."""

import numpy as np

BACKGROUND_BELOW = 1e-3  # in the first band
LOWEST = 1e-6  # reflectances are raised to it before the logarithm


def log_reflectance(cube: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (log10 cube + 3) / 3 as float32 [bands, H, W], 1 in background, and what is background [H, W].

    The upstream code's transform (DOMAINS.md S2.c), on a copy. Values below 0.001 become negative.
    """
    background_HW = cube[0] < BACKGROUND_BELOW
    scaled = (np.log10(np.maximum(cube, np.float32(LOWEST))) + 3) / 3
    scaled[:, background_HW] = 1
    return scaled.astype(np.float32, copy=False), background_HW
