"""A world of stimuli with planted codes behind voxels and CLIP-like targets: for synthetic files.

Stimulus m has a code u_m ~ N(0, I_K). Voxels answer x = A (u + e) + noise, anew at every trial: e is noise
that all voxels hear, the other each voxel's own. A target is y = normalise(B f(u) + noise), where f is one of
two:

* linear, f(u) = u: without e, y = normalise(W x + noise) with W = B (A'A + noise² I)⁻¹ A';
* rectified: features that are silent below a threshold, f_j(u) = max(0, w_j·u − threshold) with |w_j| = 1,
  each brought to mean 0 and variance 1. What a linear map of x can know of f is then a part only: of their
  variance corr(z, max(0, z − threshold))², which is 0.37 at a threshold of 1.

The posterior of u given x is normal in both, so the expected B f(u) has a closed form: the best guess of y
that any model can make, up to its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtr

TARGET_DIM = 768
# noise of each target; sd_final is that of a second tower
LAYERS = {"final": 0.5, "layer_4": 1.5, "layer_8": 1.0, "layer_12": 0.7, "sd_final": 0.5}
GALLERY = 300
MAX_FLOOR_ROWS = 2000
FEATURES_PER_CODE = 4
_CODES, _VOXELS, _TARGETS, _PICTURES, _TRIALS, _FEATURES, _GAINS, _SHARED = range(
    8
)  # streams of random numbers
_PICTURE_BLOCKS = 5


@dataclass(frozen=True)
class World:
    """K codes for M stimuli and V voxels; one trial's posterior variance of u is about n / (1 + n), with
    n = `noise_to_signal`. `threshold` is that of the rectified features; None: the targets are linear in u.

    Without `voxel_noise` all noise is each voxel's own. With it n is the variance of e, `voxel_noise` the
    deviation of each voxel's own noise, and voxels differ in how well they hear: the deviation of their
    signals is even over 0 … √3.
    """

    seed: int
    num_stimuli: int
    num_voxels: int
    num_codes: int = 32
    noise_to_signal: float = 0.5
    threshold: float | None = None
    voxel_noise: float | None = None

    @property
    def noise(self) -> float:
        """Standard deviation of a voxel's own noise; that of its signal is about 1."""
        if self.voxel_noise is not None:
            return self.voxel_noise
        return float(np.sqrt(self.noise_to_signal * self.num_voxels / self.num_codes))

    @cached_property
    def codes(self) -> np.ndarray:
        """Return float32 [M, K]."""
        return self._normal((self.num_stimuli, self.num_codes), _CODES)

    @cached_property
    def voxel_map(self) -> np.ndarray:
        """Return A', float32 [K, V]."""
        map_KV = self._normal((self.num_codes, self.num_voxels), _VOXELS) / np.sqrt(
            np.float32(self.num_codes)
        )
        if self.voxel_noise is None:
            return map_KV
        gain_V = np.random.default_rng([self.seed, _GAINS]).uniform(0, np.sqrt(3), self.num_voxels)
        return map_KV * gain_V.astype(np.float32)

    @property
    def _shared_noise(self) -> float:
        """Variance of e."""
        return 0.0 if self.voxel_noise is None else self.noise_to_signal

    @cached_property
    def _scale(self) -> np.ndarray:
        """Return what responses are divided by, float32 [V]."""
        if self.voxel_noise is None:
            return np.full(self.num_voxels, np.sqrt(1 + self.noise**2), np.float32)
        heard_V = (self.voxel_map.astype(np.float64) ** 2).sum(axis=0)
        return np.sqrt(heard_V * (1 + self._shared_noise) + self.noise**2).astype(np.float32)

    def targets(self, name: str) -> np.ndarray:
        """Return the unit rows of one of LAYERS, float32 [M, 768]."""
        stream = list(LAYERS).index(name)
        noise_MD = self._normal((self.num_stimuli, TARGET_DIM), _TARGETS, stream, 1)
        features_MF = self._features(self.codes, None)
        return unit_rows(features_MF @ self._target_map(name) + np.float32(LAYERS[name]) * noise_MD)

    def responses(self, stimuli_N: np.ndarray, *stream: int) -> np.ndarray:
        """Return float32 [N, V] with variance about 1, one trial each; a `stream` for each set of trials."""
        noise_NV = self._normal((len(stimuli_N), self.num_voxels), _TRIALS, *stream)
        codes_NK = self.codes[stimuli_N]
        if self._shared_noise:
            shared_NK = self._normal(codes_NK.shape, _SHARED, *stream)
            codes_NK = codes_NK + np.float32(np.sqrt(self._shared_noise)) * shared_NK
        return (codes_NK @ self.voxel_map + np.float32(self.noise) * noise_NV) / self._scale

    def best_guess(self, x_NV: np.ndarray, num_repeats: int = 1) -> np.ndarray:
        """Return the expected final target (unnormalised) given the mean of `num_repeats` responses."""
        map_KV = self.voxel_map.astype(np.float64)
        eye_KK = np.eye(self.num_codes)
        gram_KK = map_KV @ map_KV.T
        # A' S⁻¹, with S = shared A A' + noise² I of a trial's noise, is (shared A'A + noise² I)⁻¹ A'.
        weight_KK = np.linalg.inv(self._shared_noise * gram_KK + self.noise**2 * eye_KK) * num_repeats
        posterior_KK = np.linalg.inv(weight_KK @ gram_KK + eye_KK)
        heard_NK = (x_NV.astype(np.float64) * self._scale) @ map_KV.T
        codes_NK = heard_NK @ (posterior_KK @ weight_KK).T
        return self._features(codes_NK, posterior_KK) @ self._target_map("final")

    def ncsnr(self) -> np.ndarray:
        """Return each voxel's deviation of the signal over that of one trial's noise, float64 [V]."""
        signal_V = np.linalg.norm(self.voxel_map.astype(np.float64), axis=0)
        return signal_V / np.sqrt(self._shared_noise * signal_V**2 + self.noise**2)

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

    def _features(self, mean_NK: np.ndarray, covariance_KK: np.ndarray | None) -> np.ndarray:
        """Return E f(u) [N, F] for u ~ N(mean, covariance), or f of known codes."""
        if self.threshold is None:
            return mean_NK
        w_KF = self._feature_map
        z_NF = mean_NK @ w_KF - np.float32(self.threshold)
        if covariance_KK is None:
            f_NF = np.maximum(z_NF, 0)
        else:
            f_NF = _rectified_mean(z_NF, np.sqrt(np.einsum("kf,kl,lf->f", w_KF, covariance_KK, w_KF)))
        mean = float(_rectified_mean(np.array([-self.threshold]), np.ones(1))[0])
        tail = float(ndtr(-self.threshold))
        # E max(0, z − t)² = (1 + t²) Φ(−t) − t φ(t) = Φ(−t) − t E max(0, z − t), for z ~ N(0, 1)
        variance = tail - self.threshold * mean - mean**2
        return (f_NF - np.float32(mean)) / np.float32(np.sqrt(variance))

    @cached_property
    def _feature_map(self) -> np.ndarray:
        """Return the features' directions, float32 [K, F]."""
        return unit_rows(self._normal((self.num_codes * FEATURES_PER_CODE, self.num_codes), _FEATURES)).T

    def _target_map(self, name: str) -> np.ndarray:
        num_features = self.num_codes * (1 if self.threshold is None else FEATURES_PER_CODE)
        map_FD = self._normal((num_features, TARGET_DIM), _TARGETS, list(LAYERS).index(name), 0)
        return map_FD / np.sqrt(np.float32(num_features))

    def _normal(self, shape: tuple[int, ...], *stream: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *stream]).standard_normal(shape, np.float32)


def _rectified_mean(z: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return E max(0, v) for v ~ N(z, deviation²)."""
    density = np.exp(-0.5 * (z / deviation) ** 2) / np.sqrt(2 * np.pi)
    return z * ndtr(z / deviation) + deviation * density


def unit_rows(y_ND: np.ndarray) -> np.ndarray:
    """Return the rows divided by their norms."""
    return y_ND / np.linalg.norm(y_ND, axis=1, keepdims=True)


def recall_at_1(pred_ND: np.ndarray, gallery_ND: np.ndarray) -> float:
    """Return the share of rows whose own target is the most similar (cosine) of the gallery."""
    similarity_NN = unit_rows(pred_ND) @ unit_rows(gallery_ND).T
    return float((similarity_NN.argmax(axis=1) == np.arange(len(pred_ND))).mean())


def mean_cosine(pred_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Return the mean cosine of the rows of predictions and targets."""
    return float((unit_rows(pred_ND) * unit_rows(y_ND)).sum(axis=1).mean())


def spread(indices: Sequence[int] | np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the indices, evenly spaced."""
    indices = np.asarray(indices)
    return indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)]


def ridge_guess(train_NV: np.ndarray, y_ND: np.ndarray, held_out_MV: np.ndarray) -> np.ndarray:
    """Return ridge regression's targets [M, D]; the training rows choose the penalty (leave one out)."""
    from sklearn.linear_model import RidgeCV

    alphas = train_NV.shape[1] * np.logspace(-2, 3, 6)
    return RidgeCV(alphas=alphas).fit(train_NV, y_ND).predict(held_out_MV)
