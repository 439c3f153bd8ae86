"""The model behind the synthetic cubes: a retina's pigments, seen through their absorption spectra.

A pixel's reflectance is illumination × 10^(-Σ concentration × extinction) (Beer and Lambert), so that the
logarithm of a cube is a mixture of few spectra over maps of few pigments: vessels and fovea, disc and
lesions. A hidden band of a pixel follows from its other bands; a pixel of which no band is seen only from the
structure around it.
"""

from dataclasses import dataclass

import numpy as np

# Shape letters: C bands, K pigments, H height, W width, P patients.

NUM_BANDS = 30
WAVELENGTHS_NM = np.linspace(450, 900, NUM_BANDS, dtype=np.float32)
PIGMENTS = ("oxyhaemoglobin", "deoxyhaemoglobin", "melanin", "macular pigment", "lens", "scatter")
FUNDUS_RADIUS = 0.98  # of half the image; outside is background, 0
ALBEDO = 0.7
NOISE = 0.04  # of a reflectance, one standard deviation; twice that at both ends of the spectrum
_LOWEST_IN_FUNDUS = 2e-3  # above what counts as background


@dataclass(frozen=True)
class Lesions:
    """What a label looks like: how many spots, of which radius, that change one pigment by how much."""

    num_spots: int
    radius: float
    pigment: str
    change: float


# Label → its share of the patients, and its lesions; `All` is upstream's word for images without a diagnosis.
LABELS: dict[str, tuple[float, Lesions | None]] = {
    "All": (0.5, None),
    "Control": (0.14, None),
    "AMD": (0.1, Lesions(14, 0.035, "scatter", -0.16)),
    "GA": (0.08, Lesions(1, 0.28, "melanin", -0.3)),
    "Naevus": (0.06, Lesions(1, 0.16, "melanin", 0.45)),
    "Ischemia": (0.06, Lesions(6, 0.09, "oxyhaemoglobin", -0.05)),
    "Glaucoma": (0.06, Lesions(1, 0.14, "scatter", -0.22)),
}


def extinctions() -> np.ndarray:
    """Return the pigments' extinction spectra float32 [K, C], in rough units, after their known bands."""
    nm = WAVELENGTHS_NM

    def band(centre: float, width: float) -> np.ndarray:
        return np.exp(-(((nm - centre) / width) ** 2) / 2)

    oxy = 1.1 * band(542, 12) + 1.2 * band(577, 9) + 1.6 * band(430, 25) + 0.04 + 0.05 * band(900, 90)
    deoxy = 1.2 * band(556, 17) + 1.4 * band(435, 25) + 0.06 * band(760, 15) + 0.12 * band(640, 60)
    spectra = [oxy, deoxy, (500 / nm) ** 3.5, band(460, 28), (450 / nm) ** 7, np.ones_like(nm)]
    return np.array(spectra, dtype=np.float32)


class Retina:
    """One patient's eye; `photograph` is one visit."""

    def __init__(self, label: str, rng: np.random.Generator) -> None:
        self.label = label
        self._nasal = 1 if rng.random() < 0.5 else -1  # right or left eye
        self._disc = np.array([0.52 * self._nasal, 0.04]) + 0.03 * rng.standard_normal(2)
        self._fovea = np.array([-0.08 * self._nasal, 0.0]) + 0.03 * rng.standard_normal(2)
        self._melanin = 0.22 + 0.06 * rng.standard_normal()
        self._lens = 0.08 + 0.1 * rng.random()
        self._macular = 0.3 + 0.2 * rng.random()
        self._waves = np.column_stack([rng.uniform(-7, 7, (8, 2)), rng.uniform(0, 2 * np.pi, 8)])
        self._vessels = _draw_vessels(rng)
        _, lesions = LABELS[label]
        num_spots = lesions.num_spots if lesions else 0
        around = self._disc if label == "Glaucoma" else self._fovea
        spread = 0.0 if label == "Glaucoma" else 0.22
        self._spots = around + spread * rng.standard_normal((num_spots, 2))

    def photograph(self, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return (reflectance, the same without noise), both float32 [C, side, side], 0 in background."""
        grid = ((np.arange(side, dtype=np.float32) + 0.5) / side) * 2 - 1
        shift, turn = 0.04 * rng.standard_normal(2), 0.05 * rng.standard_normal()
        x_HW = np.cos(turn) * grid[None, :] - np.sin(turn) * grid[:, None] + shift[0]
        y_HW = np.sin(turn) * grid[None, :] + np.cos(turn) * grid[:, None] + shift[1]
        concentration_KHW = self._pigments(x_HW.astype(np.float32), y_HW.astype(np.float32))
        absorbance_CHW = np.tensordot(extinctions().T, concentration_KHW, axes=1)
        centre = 0.15 * rng.standard_normal(2)
        fall_off = (grid[None, :] - centre[0]) ** 2 + (grid[:, None] - centre[1]) ** 2
        light_HW = ALBEDO * np.exp(0.1 * rng.standard_normal()) * (1 - 0.3 * fall_off)
        clean_CHW = (light_HW * 10 ** (-absorbance_CHW)).astype(np.float32)
        noise_C = NOISE * (1 + np.abs(np.linspace(-1, 1, NUM_BANDS, dtype=np.float32)) ** 4)
        noise_CHW = rng.standard_normal(clean_CHW.shape, dtype=np.float32) * noise_C[:, None, None]
        inside_HW = grid[None, :] ** 2 + grid[:, None] ** 2 < FUNDUS_RADIUS**2
        limits = (np.float32(_LOWEST_IN_FUNDUS), np.float32(1))
        noisy_CHW = (clean_CHW * (1 + noise_CHW)).clip(*limits) * inside_HW
        return noisy_CHW, clean_CHW.clip(*limits) * inside_HW

    def _pigments(self, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
        """Return the concentrations [K, H, W] at points of the eye."""
        maps = {name: np.zeros_like(x_HW) for name in PIGMENTS}
        from_fovea = (x_HW - self._fovea[0]) ** 2 + (y_HW - self._fovea[1]) ** 2
        from_disc = np.sqrt((x_HW - self._disc[0]) ** 2 + (y_HW - self._disc[1]) ** 2)
        texture_HW = sum(np.cos(kx * x_HW + ky * y_HW + phase) for kx, ky, phase in self._waves)
        maps["melanin"] += self._melanin * (1 + 0.12 * texture_HW + 0.7 * np.exp(-from_fovea / 0.03))
        maps["macular pigment"] += self._macular * np.exp(-from_fovea / 0.02)
        maps["lens"] += self._lens
        maps["scatter"] += 0.12 - 0.2 / (1 + np.exp((from_disc - 0.13) / 0.012))
        maps["oxyhaemoglobin"] += 0.06 + 0.006 * texture_HW
        along_HW = (self._disc[0] - x_HW) * self._nasal
        for vessel in self._vessels:
            blood_HW = vessel.thickness(along_HW, y_HW - self._disc[1])
            maps["oxyhaemoglobin"] += (0.32 if vessel.is_artery else 0.16) * blood_HW
            maps["deoxyhaemoglobin"] += (0.03 if vessel.is_artery else 0.22) * blood_HW
        _, lesions = LABELS[self.label]
        for spot_x, spot_y in self._spots:
            assert lesions is not None
            away = (x_HW - spot_x) ** 2 + (y_HW - spot_y) ** 2
            maps[lesions.pigment] += lesions.change * np.exp(-((away / lesions.radius**2) ** 2))
        return np.stack([maps[name] for name in PIGMENTS]).clip(min=-0.1)


@dataclass(frozen=True)
class _Vessel:
    """A curve from the disc, in the disc's coordinates: rises to `height` over `reach`, with a wiggle."""

    direction: int  # 1 towards the fovea, -1 away from it
    height: float
    reach: float
    wiggle: float
    phase: float
    width: float
    is_artery: bool

    def thickness(self, along_HW: np.ndarray, up_HW: np.ndarray) -> np.ndarray:
        """Return how much of the vessel lies at each point, 0 … 1."""
        away_HW = along_HW * self.direction
        rising_HW = np.exp(-np.maximum(away_HW, 0) / self.reach)
        waves_HW = self.wiggle * np.sin(9 * away_HW + self.phase)
        centre_HW = self.height * (1 - rising_HW) + waves_HW
        slope_HW = self.height / self.reach * rising_HW + 9 * self.wiggle * np.cos(9 * away_HW + self.phase)
        distance_HW = np.abs(up_HW - centre_HW) / np.sqrt(1 + slope_HW**2)
        width_HW = self.width * (0.4 + 0.6 * np.exp(-np.maximum(away_HW, 0)))
        return np.exp(-((distance_HW / width_HW) ** 2)) * (away_HW > 0)


def _draw_vessels(rng: np.random.Generator) -> list[_Vessel]:
    """Return an artery and a vein up and down, on both sides of the disc, and thinner ones between."""
    vessels = []
    for direction, height, reach, width in (
        (1, 0.55, 0.25, 0.030),
        (-1, 0.5, 0.3, 0.024),
        (1, 0.9, 0.5, 0.014),
        (1, 0.2, 0.4, 0.011),
    ):
        for sign in (1, -1):
            for is_artery in (True, False):
                bent = height * np.exp(0.15 * rng.standard_normal()) + (0.05 if is_artery else -0.03)
                wiggle, phase = 0.015 * rng.random(), rng.uniform(0, 2 * np.pi)
                vessels.append(_Vessel(direction, sign * bent, reach, wiggle, phase, width, is_artery))
    return vessels
