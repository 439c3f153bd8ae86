"""A world of stimuli in which voxels and CLIP-like targets are linear in hidden codes: for synthetic files.

Stimulus m has a code u_m ~ N(0, I_K). A voxel answers x = A u + noise (anew at every trial), a target is
y = normalise(B u + noise), so y = normalise(W x + noise) with W = B (A'A + noise² I)⁻¹ A'. The posterior mean
of u is therefore known, and with it the best retrieval that any model can expect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TARGET_DIM = 768
LAYERS = {"final": 0.5, "layer_4": 1.5, "layer_8": 1.0, "layer_12": 0.7}  # noise of each target
GALLERY = 300
MAX_FLOOR_ROWS = 2000
_CODES, _VOXELS, _TARGETS, _PICTURES, _TRIALS = range(5)  # streams of random numbers
_PICTURE_BLOCKS = 5


@dataclass(frozen=True)
class World:
    """K codes for M stimuli and V voxels; one trial's posterior variance of u is about n / (1 + n), with
    n = `noise_to_signal`.
    """

    seed: int
    num_stimuli: int
    num_voxels: int
    num_codes: int = 32
    noise_to_signal: float = 0.5

    @property
    def noise(self) -> float:
        """Standard deviation of a voxel's noise; that of its signal is about 1."""
        return float(np.sqrt(self.noise_to_signal * self.num_voxels / self.num_codes))

    @cached_property
    def codes(self) -> np.ndarray:
        """Return float32 [M, K]."""
        return self._normal((self.num_stimuli, self.num_codes), _CODES)

    @cached_property
    def voxel_map(self) -> np.ndarray:
        """Return A', float32 [K, V]."""
        return self._normal((self.num_codes, self.num_voxels), _VOXELS) / np.sqrt(np.float32(self.num_codes))

    def targets(self, name: str) -> np.ndarray:
        """Return the unit rows of one of LAYERS, float32 [M, 768]."""
        stream = list(LAYERS).index(name)
        noise_MD = self._normal((self.num_stimuli, TARGET_DIM), _TARGETS, stream, 1)
        return unit_rows(self.codes @ self._target_map(name) + np.float32(LAYERS[name]) * noise_MD)

    def responses(self, stimuli_N: np.ndarray, *stream: int) -> np.ndarray:
        """Return float32 [N, V] with variance about 1, one trial each; a `stream` for each set of trials."""
        noise_NV = self._normal((len(stimuli_N), self.num_voxels), _TRIALS, *stream)
        signal_NV = self.codes[stimuli_N] @ self.voxel_map
        return (signal_NV + np.float32(self.noise) * noise_NV) / np.float32(np.sqrt(1 + self.noise**2))

    def best_guess(self, x_NV: np.ndarray, num_repeats: int = 1) -> np.ndarray:
        """Return the expected final target (unnormalised) given the mean of `num_repeats` responses."""
        map_KV = self.voxel_map.astype(np.float64)
        variance = self.noise**2 / num_repeats
        precision_KK = map_KV @ map_KV.T / variance + np.eye(self.num_codes)
        x_NV = x_NV.astype(np.float64) * np.sqrt(1 + self.noise**2)
        codes_NK = np.linalg.solve(precision_KK, map_KV @ x_NV.T / variance).T
        return codes_NK @ self._target_map("final")

    def picture(self, stimulus: int, side: int) -> np.ndarray:
        """Return uint8 [side, side, 3]: coloured squares that are linear in the code."""
        values = self.codes[stimulus] @ self._picture_map / np.sqrt(self.num_codes)
        colours = np.clip(128 + 50 * values, 0, 255).astype(np.uint8)
        blocks = colours.reshape(_PICTURE_BLOCKS, _PICTURE_BLOCKS, 3)
        place = np.arange(side) * _PICTURE_BLOCKS // side
        return blocks[place][:, place]

    @cached_property
    def _picture_map(self) -> np.ndarray:
        return self._normal((self.num_codes, _PICTURE_BLOCKS**2 * 3), _PICTURES)

    def _target_map(self, name: str) -> np.ndarray:
        map_KD = self._normal((self.num_codes, TARGET_DIM), _TARGETS, list(LAYERS).index(name), 0)
        return map_KD / np.sqrt(np.float32(self.num_codes))

    def _normal(self, shape: tuple[int, ...], *stream: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *stream]).standard_normal(shape, np.float32)


def unit_rows(y_ND: np.ndarray) -> np.ndarray:
    """Return the rows divided by their norms."""
    return y_ND / np.linalg.norm(y_ND, axis=1, keepdims=True)


def recall_at_1(pred_ND: np.ndarray, gallery_ND: np.ndarray) -> float:
    """Return the share of rows whose own target is the most similar (cosine) of the gallery."""
    similarity_NN = unit_rows(pred_ND) @ unit_rows(gallery_ND).T
    return float((similarity_NN.argmax(axis=1) == np.arange(len(pred_ND))).mean())


def spread(indices: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the indices, evenly spaced."""
    indices = np.asarray(indices)
    return indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)]


def ridge_guess(train_NV: np.ndarray, y_ND: np.ndarray, held_out_MV: np.ndarray) -> np.ndarray:
    """Return ridge regression's targets [M, D]; the training rows choose the penalty (leave one out)."""
    from sklearn.linear_model import RidgeCV

    alphas = train_NV.shape[1] * np.logspace(-2, 3, 6)
    return RidgeCV(alphas=alphas).fit(train_NV, y_ND).predict(held_out_MV)
