"""Synthetic retinas as a table of HDF5 cubes with RGB images beside them, and what can be expected of them.

The layout is SpectralEye's: `dataset.csv` with `ID,label,hs_file,rgb_file`, a folder per patient, the cube
as `/Cube/Images` with its wavelengths beside it. The metric is that of a masked autoencoder: the squared
error at tokens that it does not see, on the scale of `reflectance.log_reflectance`.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from voxray.core.splits import assign_splits
from voxray.core.task import SynthReport
from voxray.data.config import PrepareConfig, SplitsConfig
from voxray.data.formats.hypercube import CUBE, WAVELENGTH
from voxray.tasks.hyperspectral.reflectance import log_reflectance
from voxray.tasks.hyperspectral.retina import ALBEDO, LABELS, NUM_BANDS, WAVELENGTHS_NM, Retina

# Shape letters: N pixels, C bands, H height, W width, T groups of bands, G tokens along a side.

CSV_NAME = "dataset.csv"
CSV_HEADER = ("ID", "label", "hs_file", "rgb_file")
CUBES_PER_PATIENT = 2.2
RGB_NM = (615, 550, 465)
BANDS_PER_TOKEN = 5
HIDDEN = 0.8  # share of the tokens
SCORED_CUBES = 24  # held-out cubes that oracle and floor are measured on, at most
RIDGE = 1e-6  # added to the spectra's covariance, of which a band's noise has about 4e-5


@dataclass(frozen=True)
class SynthSize:
    """Cubes, their side in pixels, and the side of a token."""

    num_cubes: int
    side: int
    patch: int


SYNTH_SIZES = {
    "tiny": SynthSize(92, 40, 8),
    "small": SynthSize(240, 125, 25),
    "full": SynthSize(190, 500, 25),
}


def synth(out: Path, size: str, seed: int) -> SynthReport:
    """Write the cubes one by one; the same seed writes the same bytes.

    The metric is the mean squared error over hidden, measured voxels of patients that `data prepare` holds
    out by default, 80 % of the tokens hidden (lower is better). Its oracle is the noise alone; its floor a
    hidden band's linear prediction from the seen bands of the same pixel; chance is the mean spectrum.
    """
    spec, rng = SYNTH_SIZES[size], np.random.default_rng(seed)
    patients = _draw_patients(spec, rng)
    split_of = assign_splits([name for name, _ in patients], SplitsConfig(), PrepareConfig().seed)
    floor, scored, noise = _Floor(), list[Path](), _Mean()
    eyes: dict[str, Retina] = {}
    rows = []
    for i, (patient, label) in enumerate(patients):
        if patient not in eyes:
            eyes[patient] = Retina(label, rng)
        cube, clean = eyes[patient].photograph(spec.side, rng)
        stem = f"{patient}/{patient}_{i:05d}"
        _write_cube(out / f"{stem}.h5", cube)
        _write_rgb(out / f"{stem}_rgb.png", cube)
        rows.append((patient, label, f"{stem}.h5", f"{stem}_rgb.png"))
        if split_of[patient] == "train":
            floor.add(cube)
        elif len(scored) < SCORED_CUBES:
            scored.append(out / f"{stem}.h5")
            noise.add(_squared_noise(cube, clean))
    _write_table(out / CSV_NAME, rows)
    return _report(spec, floor, scored, noise)


def _draw_patients(spec: SynthSize, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Return each cube's patient and label; a patient keeps both over the visits."""
    shares = np.array([share for share, _ in LABELS.values()])
    patients: list[tuple[str, str]] = []
    number = 0
    while len(patients) < spec.num_cubes:
        number += 1
        visits = min(int(rng.geometric(1 / CUBES_PER_PATIENT)), 8)
        label = str(rng.choice(list(LABELS), p=shares / shares.sum()))
        patients += [(f"P{number:04d}", label)] * visits
    return patients[: spec.num_cubes]


# --- files
# ------------------------------------------------------------------------------------------------------------


def _write_cube(path: Path, cube: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[CUBE] = cube
        file[f"{CUBE.rpartition('/')[0]}/{WAVELENGTH}"] = WAVELENGTHS_NM


def _write_rgb(path: Path, cube: np.ndarray) -> None:
    """Write the three nearest bands as an 8-bit PNG with a display's gamma."""
    bands = [int(np.abs(WAVELENGTHS_NM - nm).argmin()) for nm in RGB_NM]
    grey = (cube[bands] / ALBEDO).clip(0, 1) ** (1 / 2.2)
    pixels = np.moveaxis((255 * grey).astype(np.uint8), 0, -1)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, compress_level=1)


def _write_table(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        writer.writerows(rows)


# --- what to expect
# ------------------------------------------------------------------------------------------------------------


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, values: np.ndarray) -> None:
        self.total += float(values.sum(dtype=np.float64))
        self.count += values.size

    @property
    def value(self) -> float:
        return self.total / self.count


def _squared_noise(cube: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return the squared difference of measured pixels, [C, N], on the model's scale."""
    scaled, background_HW = log_reflectance(cube)
    return (scaled - log_reflectance(clean)[0])[:, ~background_HW] ** 2


class _Floor:
    """The mean and covariance of training pixels' spectra, from sums, and predictions by them."""

    def __init__(self) -> None:
        self._count = 0
        self._sum_C = np.zeros(NUM_BANDS)
        self._gram_CC = np.zeros((NUM_BANDS, NUM_BANDS))

    def add(self, cube: np.ndarray) -> None:
        """Take the measured pixels of a training cube."""
        scaled, background_HW = log_reflectance(cube)
        spectra_CN = scaled[:, ~background_HW].astype(np.float64)
        self._count += spectra_CN.shape[1]
        self._sum_C += spectra_CN.sum(axis=1)
        self._gram_CC += spectra_CN @ spectra_CN.T

    def squared_errors(self, spectra_CN: np.ndarray, seen_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the squared errors at hidden bands, [bands, N]: of the prediction, of the mean spectrum."""
        mean_C = self._sum_C / self._count
        cov_CC = self._gram_CC / self._count - np.outer(mean_C, mean_C)
        deviation_CN = spectra_CN - mean_C[:, None]
        seen_cov = cov_CC[np.ix_(seen_C, seen_C)] + RIDGE * np.eye(int(seen_C.sum()))
        weights = np.linalg.solve(seen_cov, cov_CC[np.ix_(seen_C, ~seen_C)]).T
        residual = deviation_CN[~seen_C] - weights @ deviation_CN[seen_C]
        return residual**2, deviation_CN[~seen_C] ** 2


def draw_hidden(num_tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Return which tokens are hidden, bool [tokens]: `HIDDEN` of them, by one permutation."""
    hidden = np.zeros(num_tokens, dtype=bool)
    hidden[rng.permutation(num_tokens)[: round(num_tokens * HIDDEN)]] = True
    return hidden


def _patches(path: Path, patch: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each patch's measured spectra [C, N] and which of its bands a drawn mask lets be seen [C]."""
    with h5py.File(path, "r") as file:
        scaled, background_HW = log_reflectance(np.asarray(file[CUBE]))
    num = background_HW.shape[0] // patch
    num_groups = NUM_BANDS // BANDS_PER_TOKEN
    hidden_TGG = draw_hidden(num_groups * num**2, rng).reshape(num_groups, num, num)
    for row, col in product(range(num), range(num)):
        window = np.s_[row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
        spectra_CN = scaled[:, *window][:, ~background_HW[window]].astype(np.float64)
        yield spectra_CN, ~np.repeat(hidden_TGG[:, row, col], BANDS_PER_TOKEN)


def _report(spec: SynthSize, floor: _Floor, scored: list[Path], noise: _Mean) -> SynthReport:
    linear, constant = _Mean(), _Mean()
    for i, path in enumerate(scored):
        for spectra_CN, seen_C in _patches(path, spec.patch, np.random.default_rng(i)):
            of_linear, of_constant = floor.squared_errors(spectra_CN, seen_C)
            linear.add(of_linear)
            constant.add(of_constant)
    return SynthReport(
        metric="mse_masked",
        num_rows=spec.num_cubes,
        oracle=noise.value,
        floor=linear.value,
        chance=constant.value,
        notes={
            "mse_masked": f"{len(scored)} held-out cubes, tokens of {BANDS_PER_TOKEN} bands × "
            f"{spec.patch}² pixels, {HIDDEN:.0%} hidden; lower is better",
            "oracle": "the noise alone; fully hidden patches cannot be known to it, so models stay above",
            "floor": "a pixel's hidden bands from its seen ones, linear; the mean spectrum without any",
            "chance": "the training pixels' mean spectrum",
        },
    )
