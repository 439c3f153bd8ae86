"""Chest X-ray rows: schema, raw rows, decoding, typed batches, a linear floor, and synthetic radiographs.

A synthetic finding is a texture of its own (orientation × frequency, checks, rings) with a random phase
somewhere in the lungs, so pixel means say little about it and a convolution much. Patients keep their anatomy
over their visits.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from math import pi
from pathlib import Path

import numpy as np
import torch
import xxhash
from PIL import Image

from voxray.core.batch import Batch, Columns, as_tensor
from voxray.core.schema import TEXT, Column, Schema
from voxray.core.splits import assign_splits
from voxray.core.task import BadRow, MapStage, RawRow, SynthReport
from voxray.data.config import PrepareConfig, SplitsConfig
from voxray.data.formats.cxr import read_radiographs
from voxray.data.formats.cxr_table import NO_FINDING
from voxray.data.formats.radiograph import decode_image
from voxray.metrics.auroc import auroc_per_class
from voxray.tasks.cxr_memory.config import LABELS, Config, CxrPrepareConfig

# Shape letters: B batch, C channels, H height, W width, K labels, N images.


def schema(config: Config) -> Schema:
    """Return the columns of a prepared row; `auto` leaves the image's side to the raw files."""
    size = config.data.prepare.image_size
    side = None if size == "auto" else size
    return Schema(
        {
            "sample_id": Column(TEXT),
            "patient_id": Column(TEXT),
            "image": Column("uint8", (1, side, side), unit="grey level 0-255"),
            "labels": Column(
                "float32", (len(LABELS),), unit="1 present, 0 absent, NaN unknown", names=LABELS
            ),
            "view": Column(TEXT),
            "sex": Column(TEXT),
            "age_years": Column("float32", unit="years, NaN unknown"),
            "follow_up": Column("int32", unit="number of the visit, -1 unknown"),
        },
        group="patient_id",
    )


def read_raw(source: Path, config: CxrPrepareConfig) -> Iterator[RawRow | BadRow]:
    """Yield the rows of a folder in any known layout; see `read_radiographs`."""
    return read_radiographs(
        source, LABELS, config.image_size, config.uncertain, config.views, config.unlabelled
    )


def map_stages() -> list[MapStage]:
    """Return the one stage that turns a file into pixels."""
    return [MapStage("decode", _decode)]


def _decode(row: RawRow) -> RawRow:
    return row | {"image": decode_image(row["path"], row["image_size"])}


@dataclass(frozen=True)
class CxrBatch(Batch):
    """Radiographs uint8 [B, 1, H, W] and labels float32 [B, K], NaN where unknown and in padding rows.

    `row_B` is each row's `row_id`.
    """

    image_BCHW: torch.Tensor
    labels_BK: torch.Tensor
    row_B: torch.Tensor


def row_id(sample_id: str) -> int:
    """Return 64 bits, signed, that stand for a row wherever a text cannot be kept (XXH3)."""
    unsigned = xxhash.xxh3_64_intdigest(sample_id.encode())
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def collate(columns: Columns) -> CxrBatch:
    """Turn columns [B, …] into tensors; rows that only pad get NaN labels."""
    valid_B = as_tensor(columns["valid"], dtype=torch.bool)
    labels_BK = as_tensor(columns["labels"])
    labels_BK[~valid_B] = torch.nan
    return CxrBatch(
        sample_id=columns["sample_id"].tolist(),
        group_id=columns["patient_id"].tolist(),
        valid_B=valid_B,
        position_B=as_tensor(columns["position"]),
        image_BCHW=as_tensor(columns["image"]),
        labels_BK=labels_BK,
        row_B=torch.tensor([row_id(str(name)) for name in columns["sample_id"]], dtype=torch.int64),
    )


# --- linear floor
# -------------------------------------------------------------------------------------------------
FLOOR_COMPONENTS = 60
FLOOR_SIDE = 64  # images are averaged down to at most this many pixels a side


def floor(train: dict[str, np.ndarray], held_out: dict[str, np.ndarray]) -> np.ndarray:
    """Return probabilities [N, K] for held-out rows: PCA (60) of pixels, then logistic regression per label.

    Rows whose label is NaN are left out of that label's fit; a label with one class only gets a constant
    score.
    """
    return _linear_scores(_small_pixels(train["image"]), train["labels"], _small_pixels(held_out["image"]))


def _linear_scores(pixels_NP: np.ndarray, labels_NK: np.ndarray, held_out_MP: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    pca = PCA(min(FLOOR_COMPONENTS, *pixels_NP.shape), whiten=True, svd_solver="randomized", random_state=0)
    train_ND, held_out_MD = pca.fit_transform(pixels_NP), pca.transform(held_out_MP)
    scores_MK = np.full((len(held_out_MD), labels_NK.shape[1]), 0.5)
    for label, targets in enumerate(labels_NK.T):
        known = ~np.isnan(targets)
        if len(np.unique(targets[known])) == 2:
            model = LogisticRegression(max_iter=1000).fit(train_ND[known], targets[known])
            scores_MK[:, label] = model.predict_proba(held_out_MD)[:, 1]
    return scores_MK


def _small_pixels(image_NCHW: np.ndarray) -> np.ndarray:
    """Return float32 [N, P] in 0 … 1, averaged over blocks so that no side is longer than FLOOR_SIDE."""
    num, _, side, _ = image_NCHW.shape
    block = -(-side // FLOOR_SIDE)
    kept = side // block
    cut = image_NCHW[:, 0, : kept * block, : kept * block].reshape(num, kept, block, kept, block)
    return cut.mean(axis=(2, 4), dtype=np.float32).reshape(num, -1) / 255


# --- synthetic radiographs
# ---------------------------------------------------------------------------------------- Coordinates run
# from -1 to 1 over the image, x to the right, y down.
CSV_NAME = "Data_Entry_2017.csv"
CSV_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
NUM_FOLDERS = 4
IMAGES_PER_PATIENT = 3.64  # 112,120 images of 30,805 patients
# Share of NIH's images that have each label (v2020: DOMAINS.md S4.c), in the order of LABELS.
NIH_PREVALENCE = np.array(
    [11559, 4667, 19894, 5302, 2303, 2516, 1686, 13317, 1431, 3385, 2776, 6331, 5782, 227]
) / 112120  # fmt: skip
# NIH's labels were mined from reports: some findings are missed, some are not there.
MISSED_RATE, SPURIOUS_RATE = 0.06, 0.10  # of the true positives
ANATOMY_SIDE = 128  # anatomy is smooth: larger images get it enlarged
FLOOR_IMAGES = 2000
CHUNK = 64

# One texture per label: stripes, checks or rings, degrees (mirrored at random), cycles per unit length.
_COARSE, _FINE = 3.2, 6.4
TEXTURES: tuple[tuple[str, float, float], ...] = (
    ("stripes", 0, _FINE),
    ("stripes", 90, _FINE),
    ("rings", 0, _COARSE),
    ("stripes", 45, _FINE),
    ("checks", 0, _FINE),
    ("stripes", 0, _COARSE),
    ("stripes", 90, _COARSE),
    ("checks", 0, _COARSE),
    ("stripes", 22.5, _FINE),
    ("stripes", 67.5, _FINE),
    ("stripes", 45, _COARSE),
    ("rings", 0, _FINE),
    ("checks", 45, _COARSE),
    ("checks", 45, _FINE),
)


@dataclass(frozen=True)
class SynthSize:
    """Number and side of the images, and the prevalences: top × (NIH's share / its largest) ** flatness."""

    num_images: int
    side: int
    top: float
    exponent: float

    def prevalences(self) -> np.ndarray:
        """Return each label's share of the images."""
        return self.top * (NIH_PREVALENCE / NIH_PREVALENCE.max()) ** self.exponent


# full has NIH's own long tail; the smaller ones are flatter, so that rare findings still occur.
SYNTH_SIZES = {
    "tiny": SynthSize(900, 64, 0.25, 0.45),
    "small": SynthSize(8000, 224, 0.2, 0.75),
    "full": SynthSize(4000, 1024, NIH_PREVALENCE.max(), 1.0),
}


@dataclass(frozen=True)
class _Cohort:
    """Who has what: patient and visit [N], truth and noisy labels [N, K] bool, view is AP [N]."""

    patient_N: np.ndarray
    visit_N: np.ndarray
    truth_NK: np.ndarray
    labels_NK: np.ndarray
    is_ap_N: np.ndarray


def synth(out: Path, size: str, seed: int) -> SynthReport:
    """Write radiographs and their table in the NIH 2017 layout; the same seed writes the same bytes.

    The report's oracle is the mean AUROC of the truth against the noisy labels, its floor that of `floor`,
    both on the patients that `data prepare` holds out by default.
    """
    spec, rng = SYNTH_SIZES[size], np.random.default_rng(seed)
    cohort = _draw_cohort(spec, rng)
    names = [
        f"{patient + 1:08d}_{visit:03d}.png"
        for patient, visit in zip(cohort.patient_N, cohort.visit_N, strict=True)
    ]
    folders = [out / f"images_{1 + i * NUM_FOLDERS // len(names):03d}" / "images" for i in range(len(names))]
    for folder in set(folders):
        folder.mkdir(parents=True)
    kept = np.linspace(0, len(names) - 1, min(len(names), FLOOR_IMAGES)).astype(int)
    small = []
    for first, image_NHW in _render_all(spec, cohort, rng):
        for i, pixels in enumerate(image_NHW, first):
            Image.fromarray(pixels).save(folders[i] / names[i], compress_level=1)
        here = kept[(kept >= first) & (kept < first + len(image_NHW))] - first
        small.append(_small_pixels(image_NHW[here, None]))
    _write_table(out / CSV_NAME, names, cohort, spec.side, rng)
    return _report(cohort, kept, np.concatenate(small))


def _report(cohort: _Cohort, kept: np.ndarray, small_NP: np.ndarray) -> SynthReport:
    labels_NK = cohort.labels_NK.astype(np.float32)
    patients = (cohort.patient_N + 1).astype(str).tolist()
    split_of = assign_splits(patients, SplitsConfig(), PrepareConfig().seed, labels_NK)
    is_train_N = np.array([split_of[patient] == "train" for patient in patients])
    fit, held_out = kept[is_train_N[kept]], kept[~is_train_N[kept]]
    scores = _linear_scores(small_NP[is_train_N[kept]], labels_NK[fit], small_NP[~is_train_N[kept]])
    return SynthReport(
        metric="auroc",
        num_rows=len(labels_NK),
        oracle=_mean_auroc(labels_NK[~is_train_N], cohort.truth_NK[~is_train_N]),
        floor=_mean_auroc(labels_NK[held_out], scores),
        chance=0.5,
        notes={
            "floor": f"PCA and logistic regression, {len(fit)} images",
            "oracle": "the truth behind the noisy labels",
        },
    )


def _mean_auroc(labels_NK: np.ndarray, scores_NK: np.ndarray) -> float:
    areas_K = auroc_per_class(torch.tensor(labels_NK), torch.tensor(scores_NK, dtype=torch.float64))[0]
    return float(areas_K.nanmean())


def _draw_cohort(spec: SynthSize, rng: np.random.Generator) -> _Cohort:
    """Draw labels by a Gaussian copula, correlated over labels and over the visits of a patient."""
    num, num_labels = spec.num_images, len(LABELS)
    visits = np.minimum(rng.geometric(1 / IMAGES_PER_PATIENT, num), 30)
    patient_N = np.repeat(np.arange(num), visits)[:num]
    visit_N = np.arange(num) - np.searchsorted(patient_N, patient_N)
    mixing_KF = 0.6 * rng.standard_normal((num_labels, 3))
    spread_K = np.sqrt(1 + (mixing_KF**2).sum(axis=1))

    def latent(rows: int) -> np.ndarray:
        return (
            rng.standard_normal((rows, 3)) @ mixing_KF.T + rng.standard_normal((rows, num_labels))
        ) / spread_K

    latent_NK = np.sqrt(0.6) * latent(num)[patient_N] + np.sqrt(0.4) * latent(num)
    prevalence_K = spec.prevalences()
    truth_NK = latent_NK > np.quantile(latent_NK, 1 - prevalence_K, axis=0).diagonal()
    flip_NK = rng.random((num, num_labels))
    spurious_K = SPURIOUS_RATE * prevalence_K / (1 - prevalence_K)
    labels_NK = np.where(truth_NK, flip_NK >= MISSED_RATE, flip_NK < spurious_K)
    return _Cohort(patient_N, visit_N, truth_NK, labels_NK, is_ap_N=rng.random(num) < 0.4)


def _render_all(
    spec: SynthSize, cohort: _Cohort, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first index, uint8 [n, side, side]) chunk by chunk."""
    anatomy_ND = rng.standard_normal((spec.num_images, 10))[cohort.patient_N]
    for first in range(0, spec.num_images, CHUNK):
        rows = slice(first, first + CHUNK)
        shape_nD = anatomy_ND[rows] + 0.15 * rng.standard_normal(anatomy_ND[rows].shape)
        image_nHW = _anatomy(
            min(spec.side, ANATOMY_SIDE), shape_nD, cohort.truth_NK[rows], cohort.is_ap_N[rows]
        )
        if spec.side > ANATOMY_SIDE:
            target = (spec.side, spec.side)
            image_nHW = np.stack(
                [np.asarray(Image.fromarray(im).resize(target, Image.Resampling.BICUBIC)) for im in image_nHW]
            )
        for image, truth_K, shape_D in zip(image_nHW, cohort.truth_NK[rows], shape_nD, strict=True):
            for label in np.flatnonzero(truth_K):
                _add_texture(image, TEXTURES[label], shape_D, rng)
            image += 0.02 * rng.standard_normal(image.shape, dtype=np.float32)
        yield first, (255 * image_nHW.clip(0, 1)).astype(np.uint8)


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / side) * 2 - 1
    return axis[None, :], axis[:, None]


def _disc(x: np.ndarray, y: np.ndarray, centre: tuple, radius: tuple, softness: float) -> np.ndarray:
    """Return an ellipse with a soft edge, 1 inside."""
    distance = np.sqrt(((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2)
    return 1 / (1 + np.exp(np.clip((distance - 1) / softness, -30, 30)))


def _lung(shape: np.ndarray, is_left: bool) -> tuple[tuple, tuple]:
    """Return centre and radius of one lung for shapes [..., D]."""
    sign = 1 if is_left else -1
    centre = (sign * (0.43 + 0.02 * shape[..., 0]), -0.08 + 0.03 * shape[..., 1])
    return centre, (0.29 + 0.02 * shape[..., 2], 0.58 + 0.04 * shape[..., 3])


def _anatomy(side: int, shape_ND: np.ndarray, truth_NK: np.ndarray, is_ap_N: np.ndarray) -> np.ndarray:
    """Return float32 [N, side, side]: body, lungs, spine, heart, ribs, diaphragm.

    As in patients, a large heart, fluid and over-inflated lungs show in the outline too, though weakly.
    """
    x, y = _grid(side)
    has = {name: truth_NK[:, k, None, None] for k, name in enumerate(LABELS)}
    shape = shape_ND.astype(np.float32)[:, None, None, :]
    body = _disc(x, y, (0, 0.25), (0.95 + 0.03 * shape[..., 4], 1.25), 0.04)
    lungs = _disc(x, y, *_lung(shape, False), 0.06) + _disc(x, y, *_lung(shape, True), 0.06)
    lungs = lungs * (0.36 + 0.03 * shape[..., 5] + 0.05 * has["Emphysema"])
    ribs = np.cos(2 * pi * (2.6 + 0.1 * shape[..., 6]) * (y + 0.35 * x * x) + shape[..., 7])
    width = 0.25 + 0.025 * shape[..., 8] + 0.03 * is_ap_N[:, None, None] + 0.05 * has["Cardiomegaly"]
    heart = _disc(x, y, (0.13, 0.28), (width, 0.3), 0.08)
    floor_y = 0.6 + 0.04 * shape[..., 9] - 0.08 * has["Effusion"]
    below = 1 / (1 + np.exp(np.clip(-(y - floor_y + 0.15 * x * x) / 0.03, -30, 30)))
    image = body * (0.62 - lungs + 0.06 * ribs * np.abs(x) + 0.16 * np.exp(-((x / 0.1) ** 2)))
    image = image + (0.7 - image) * 0.85 * heart * body
    return (image + (0.68 - image) * 0.8 * below * body).astype(np.float32)


def _add_texture(
    image_HW: np.ndarray, texture: tuple[str, float, float], shape_D: np.ndarray, rng: np.random.Generator
) -> None:
    """Add one finding in place: its texture under a Gaussian window somewhere inside a lung."""
    kind, degrees, frequency = texture
    (centre_x, centre_y), (radius_x, radius_y) = _lung(shape_D, bool(rng.random() < 0.5))
    x, y = _grid(len(image_HW))
    u = x - (centre_x + 0.5 * radius_x * rng.uniform(-1, 1))
    v = y - (centre_y + 0.6 * radius_y * rng.uniform(-1, 1))
    angle = np.deg2rad(degrees + rng.uniform(-5, 5)) * rng.choice([-1, 1])
    width, strength = rng.uniform(0.16, 0.26), rng.uniform(0.25, 0.4)
    phase_a, phase_b = rng.uniform(0, 2 * pi, 2)
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    wave = 2 * pi * frequency
    if kind == "rings":
        pattern = np.cos(wave * np.sqrt(u * u + v * v) + phase_a)
    elif kind == "checks":
        pattern = 1.4 * np.cos(wave * along + phase_a) * np.cos(wave * across + phase_b)
    else:
        pattern = np.cos(wave * along + phase_a)
    image_HW += (strength * pattern * np.exp(-(u * u + v * v) / (2 * width * width))).astype(np.float32)


def _write_table(path: Path, names: list[str], cohort: _Cohort, side: int, rng: np.random.Generator) -> None:
    age_N = rng.integers(18, 85, len(names))[cohort.patient_N]
    sex_N = rng.choice(["F", "M"], len(names))[cohort.patient_N]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(CSV_HEADER + "\n")
        writer = csv.writer(file, lineterminator="\n")
        for i, name in enumerate(names):
            found = "|".join(label for label, has in zip(LABELS, cohort.labels_NK[i], strict=True) if has)
            view, visit = "AP" if cohort.is_ap_N[i] else "PA", cohort.visit_N[i]
            patient, age = cohort.patient_N[i] + 1, f"{min(age_N[i] + visit // 2, 95):03d}Y"
            writer.writerow(
                [name, found or NO_FINDING, visit, patient, age, sex_N[i], view, side, side, 0.143, 0.143, ""]
            )
