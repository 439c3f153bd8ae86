"""What needs no network: hidden bands from a pixel's seen ones by principal components, and classes from
spectra by logistic regression.

The components are those of probabilistic PCA (Tipping & Bishop 1999): spectra are mean + W z + noise, z is
estimated from the seen bands, and with no component the prediction is the mean spectrum.

Shapes: N rows, C bands, K components, H × W pixels, S spectra.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_LEAST_NOISE = 1e-8  # of the components' noise: where as many are kept as there are bands
MOST_SPECTRA = 20_000  # labelled training pixels that a classifier is fitted on, drawn by a fixed seed
_SEED = 0


@dataclass(frozen=True)
class SpectrumModel:
    """Mean spectrum [C], components [C, K] times their standard deviation, and the noise's variance."""

    mean_C: np.ndarray
    components_CK: np.ndarray
    noise: float

    def predict(self, cube_CHW: np.ndarray, seen_CHW: np.ndarray) -> np.ndarray:
        """Return every band's expectation given the bands that are seen, [C, H, W] float64."""
        shape = cube_CHW.shape
        cube_CX = cube_CHW.reshape(len(cube_CHW), -1).astype(np.float64)
        patterns_CY, which_X = np.unique(seen_CHW.reshape(len(cube_CHW), -1), axis=1, return_inverse=True)
        result_CX = np.empty_like(cube_CX)
        for number, seen_C in enumerate(patterns_CY.T):
            pixels = which_X.ravel() == number
            away_SX = (cube_CX[:, pixels] - self.mean_C[:, None])[seen_C]
            seen_SK = self.components_CK[seen_C]
            gram_KK = seen_SK.T @ seen_SK + self.noise * np.eye(seen_SK.shape[1])
            z_KX = np.linalg.solve(gram_KK, seen_SK.T @ away_SX)
            result_CX[:, pixels] = self.mean_C[:, None] + self.components_CK @ z_KX
        return result_CX.reshape(shape)


def fit_spectra(cubes: Iterable[np.ndarray], measured: Iterable[np.ndarray], num: int) -> SpectrumModel:
    """Return the model of the measured pixels' spectra with `num` components, from sums: any number of cubes
    [C, H, W] does.
    """
    count, total_C, gram_CC = 0, np.zeros(()), np.zeros(())
    for cube_CHW, measured_HW in zip(cubes, measured, strict=True):
        spectra_CS = cube_CHW[:, measured_HW > 0].astype(np.float64)
        count += spectra_CS.shape[1]
        total_C, gram_CC = total_C + spectra_CS.sum(1), gram_CC + spectra_CS @ spectra_CS.T
    mean_C = total_C / max(count, 1)
    values, vectors = np.linalg.eigh(gram_CC / max(count, 1) - np.outer(mean_C, mean_C))
    order = np.argsort(-values)
    kept, left = order[:num], order[num:]
    noise = max(float(values[left].mean()) if len(left) else 0.0, _LEAST_NOISE)
    strengths = np.sqrt(np.maximum(values[kept] - noise, 0))
    return SpectrumModel(mean_C, vectors[:, kept] * strengths, noise)


def logistic_regression(train_SC: np.ndarray, classes_S: np.ndarray, held_out_SC: np.ndarray) -> np.ndarray:
    """Return the held-out spectra's classes by multinomial logistic regression on standardised bands."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(train_SC) > MOST_SPECTRA:
        chosen = np.random.default_rng(_SEED).permutation(len(train_SC))[:MOST_SPECTRA]
        train_SC, classes_S = train_SC[chosen], classes_S[chosen]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, max_iter=2000))
    model.fit(train_SC, classes_S)
    return model.predict(held_out_SC)


def spectra_of(cubes_NCHW: np.ndarray) -> np.ndarray:
    """[N, C, H, W] → [N · H · W, C]."""
    return np.moveaxis(cubes_NCHW, 1, -1).reshape(-1, cubes_NCHW.shape[1])


def mean_spectra(cubes_NCHW: np.ndarray, measured_NHW: np.ndarray) -> np.ndarray:
    """Return each cube's mean spectrum over its measured pixels [N, C]."""
    weight_N1HW = (measured_NHW > 0)[:, None].astype(np.float64)
    return (cubes_NCHW * weight_N1HW).sum((2, 3)) / np.maximum(weight_N1HW.sum((2, 3)), 1)
