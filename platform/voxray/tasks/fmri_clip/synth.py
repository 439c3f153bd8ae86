"""Synthetic raw fMRI of one subject in the real layouts: `.npz` with `clip.npz`, or the folders of NSD.

Voxels and targets come from a `World` with rectified features, so that no linear map decodes all that the
voxels tell. Voxels differ in reliability, and their noise ceiling is known. In NSD's layout each session also
has its own offset and gain per voxel, as scanners do; z-scoring within the session takes them away.
"""

import csv
import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from voxray.core.splits import assign_splits
from voxray.core.task import SynthReport
from voxray.data.config import PrepareConfig, SplitsConfig
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import ID
from voxray.data.formats.nsd import MASK, NUM_REPEATS, STIMULUS_TABLE, TRIALS_PER_SESSION, stimulus_name
from voxray.data.formats.planted_world import (
    GALLERY,
    LAYERS,
    MAX_FLOOR_ROWS,
    World,
    mean_cosine,
    recall_at_1,
    ridge_guess,
    spread,
)
from voxray.data.formats.volumes import NSD_BETA_SCALE

SUBJECT = "subj01"
NUM_PICTURES = 73_000  # of NSD, of which each subject saw up to 10,000
BETAS = f"nsddata_betas/ppdata/{SUBJECT}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
ROI = f"nsddata/ppdata/{SUBJECT}/func1pt8mm/roi"
EXPERIMENT = "nsddata/experiments/nsd"
STIMULI = "nsddata_stimuli/stimuli/nsd"
_PERCENT = 2.0  # standard deviation of a beta, percent signal change
_NIFTI_INT16 = 4
_VOXEL_MM = 1.8
_COMPRESSED: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "track_times": False}


@dataclass(frozen=True)
class SynthSize:
    """Trials, voxels, their volume and the pictures' side; `num_shared` are of NSD's shared 1,000."""

    kind: Literal["npz", "nifti", "hdf5"]
    num_sessions: int
    trials_per_session: int
    num_voxels: int
    volume: tuple[int, int, int] = (1, 1, 1)
    picture_side: int = 0
    num_codes: int = 16
    noise_to_signal: float = 0.1
    num_shared: int = 0
    threshold: float = 1.0
    voxel_noise: float = 1.5

    @property
    def num_trials(self) -> int:
        """Return the trials of all sessions."""
        return self.num_sessions * self.trials_per_session

    @property
    def num_stimuli(self) -> int:
        """Return the different pictures; each is shown three times."""
        return self.num_trials // NUM_REPEATS

    def world(self, seed: int) -> World:
        """Return the stimuli and the brain that looks at them."""
        return World(
            seed,
            self.num_stimuli,
            self.num_voxels,
            self.num_codes,
            self.noise_to_signal,
            self.threshold,
            self.voxel_noise,
        )


# full: subject 1 of NSD, 40 sessions of 750 trials and 15,724 voxels (DOMAINS S3.c).
SYNTH_SIZES = {
    "tiny": SynthSize("npz", 3, 300, 1000),
    "small": SynthSize("nifti", 9, TRIALS_PER_SESSION, 4000, (30, 36, 30), 100, num_shared=300),
    "full": SynthSize("hdf5", 40, TRIALS_PER_SESSION, 15_724, (81, 104, 83), 425, 24, num_shared=1000),
}


@dataclass(frozen=True)
class _Design:
    """Who saw what when: stimulus [trials] (a number of the world's), nsd_id and is_shared [stimuli]."""

    stimulus_N: np.ndarray
    nsd_id_M: np.ndarray
    is_shared_M: np.ndarray


def synth(out: Path, size: str, seed: int) -> SynthReport:
    """Write one subject's raw files; the same seed writes the same bytes.

    The report's metric is the cosine to the target of held-out stimuli, one trial each: oracle by the
    posterior mean of the targets, floor by ridge regression on up to 2,000 training trials, chance by the
    mean training target. Its notes have recall at 1 too, which the posterior mean does not bound: a model
    trained by InfoNCE may weigh the features as retrieval needs them.
    """
    return write_subject(out, SYNTH_SIZES[size], seed)


def write_subject(out: Path, spec: SynthSize, seed: int) -> SynthReport:
    """Write the raw files that `spec` describes; see `synth`."""
    world = spec.world(seed)
    design = _draw_design(spec, seed)
    out.mkdir(parents=True, exist_ok=True)
    _write_targets(out / TARGETS, world, design)
    if spec.kind == "npz":
        _write_npz(out / f"{SUBJECT}.npz", spec, world, design)
    else:
        _write_nsd(out, spec, world, design, seed)
    return _report(spec, world, design)


def _draw_design(spec: SynthSize, seed: int) -> _Design:
    rng = np.random.default_rng([seed, 100])
    stimulus_N = rng.permutation(np.repeat(np.arange(spec.num_stimuli), NUM_REPEATS))
    nsd_id_M = np.sort(rng.choice(NUM_PICTURES, spec.num_stimuli, replace=False))
    is_shared_M = np.zeros(spec.num_stimuli, bool)
    is_shared_M[rng.choice(spec.num_stimuli, spec.num_shared, replace=False)] = True
    return _Design(stimulus_N, nsd_id_M, is_shared_M)


def _session(spec: SynthSize, world: World, design: _Design, session: int) -> np.ndarray:
    """Return float32 [trials, V] of one session, without its offset and gain."""
    start = session * spec.trials_per_session
    return world.responses(design.stimulus_N[start : start + spec.trials_per_session], session)


def _write_targets(path: Path, world: World, design: _Design) -> None:
    arrays: dict[str, Any] = {name: world.targets(name) for name in LAYERS}
    with path.open("wb") as file:
        np.savez(file, **{ID: design.nsd_id_M}, **arrays)


def _write_npz(path: Path, spec: SynthSize, world: World, design: _Design) -> None:
    x_NV = np.concatenate([_session(spec, world, design, i) for i in range(spec.num_sessions)])
    session_N = np.repeat(np.arange(1, spec.num_sessions + 1, dtype=np.int16), spec.trials_per_session)
    with path.open("wb") as file:
        np.savez(file, x=x_NV, nsd_id=design.nsd_id_M[design.stimulus_N], session=session_N)


def _report(spec: SynthSize, world: World, design: _Design) -> SynthReport:
    is_tested_M = design.is_shared_M if spec.num_shared else _held_out(design)
    gallery = spread(np.flatnonzero(is_tested_M), GALLERY)
    train = spread(np.flatnonzero(~is_tested_M[design.stimulus_N]), MAX_FLOOR_ROWS)
    tests = np.array([np.flatnonzero(design.stimulus_N == stimulus)[0] for stimulus in gallery])
    wanted = np.concatenate([train, tests])
    x_NV = np.empty((len(wanted), spec.num_voxels), np.float32)
    for session in np.unique(wanted // spec.trials_per_session):
        here = np.flatnonzero(wanted // spec.trials_per_session == session)
        x_NV[here] = _session(spec, world, design, int(session))[wanted[here] % spec.trials_per_session]
    y_MD = world.targets("final")
    train_NV, tests_NV = x_NV[: len(train)], x_NV[len(train) :]
    known_ND, true_MD = y_MD[design.stimulus_N[train]], y_MD[gallery]
    ridge_MD, best_MD = ridge_guess(train_NV, known_ND, tests_NV), world.best_guess(tests_NV)
    return SynthReport(
        metric="cosine_similarity",
        num_rows=spec.num_trials,
        oracle=mean_cosine(best_MD, true_MD),
        floor=mean_cosine(ridge_MD, true_MD),
        chance=mean_cosine(np.broadcast_to(known_ND.mean(axis=0), true_MD.shape), true_MD),
        notes={
            "floor": f"ridge regression on {len(train)} trials",
            "oracle": f"posterior mean of the targets, one trial of each of {len(gallery)} stimuli",
            f"r1_of_{len(gallery)}": f"ridge regression {recall_at_1(ridge_MD, true_MD):.3f}, posterior mean "
            f"{recall_at_1(best_MD, true_MD):.3f}, chance {1 / len(gallery):.4f}",
            "noise ceiling": _ceilings(world),
        },
    )


def _ceilings(world: World) -> str:
    """Return the planted noise ceilings: ncsnr² / (ncsnr² + 1/n) for n trials (Allen et al. 2022)."""
    power_V = world.ncsnr() ** 2
    of_trials = [float((power_V / (power_V + 1 / n)).mean()) for n in (1, NUM_REPEATS)]
    return f"{of_trials[0]:.1%} of a voxel's variance, {of_trials[1]:.1%} in the mean of {NUM_REPEATS} trials"


def _held_out(design: _Design) -> np.ndarray:
    """Return bool [stimuli], True for those that `data prepare` puts into the test split by default."""
    names = [stimulus_name(nsd_id) for nsd_id in design.nsd_id_M.tolist()]
    shown = [names[stimulus] for stimulus in design.stimulus_N.tolist()]
    split_of = assign_splits(shown, SplitsConfig(), PrepareConfig().seed)
    return np.array([split_of[name] == "test" for name in names])


# --- NSD's folders
# -------------------------------------------------------------------------------------------------------


def _write_nsd(out: Path, spec: SynthSize, world: World, design: _Design, seed: int) -> None:
    for folder in (BETAS, ROI, EXPERIMENT, STIMULI):
        (out / folder).mkdir(parents=True)
    mask_XYZ = _mask(spec)
    with _nifti(out / ROI / MASK, spec.volume, 1) as file:
        # NSD's ROIs: -1 outside of cortex, 1 inside the region
        file.write(np.where(mask_XYZ, 1, -1).astype("<i2").tobytes(order="F"))
    _write_table(out / EXPERIMENT / STIMULUS_TABLE, design)
    _write_stimuli(out / STIMULI / "nsd_stimuli.hdf5", spec, world, design)
    for session in range(spec.num_sessions):
        rng = np.random.default_rng([seed, 101, session])
        gain_V = rng.uniform(0.5, 1.5, spec.num_voxels).astype(np.float32) * np.float32(_PERCENT)
        offset_V = rng.normal(0, 1, spec.num_voxels).astype(np.float32)
        percent_NV = _session(spec, world, design, session) * gain_V + offset_V
        betas_NV = np.clip(np.round(percent_NV * np.float32(NSD_BETA_SCALE)), -32767, 32767).astype("<i2")
        path = out / BETAS / f"betas_session{session + 1:02d}"
        if spec.kind == "nifti":
            _write_nifti_betas(path.with_suffix(".nii.gz"), betas_NV, mask_XYZ)
        else:
            _write_hdf5_betas(path.with_suffix(".hdf5"), betas_NV, mask_XYZ)


def _mask(spec: SynthSize) -> np.ndarray:
    """Return bool [X, Y, Z]: the `num_voxels` voxels nearest to a point at the back of the head."""
    centre = np.array(spec.volume) * (0.5, 0.25, 0.5)
    grid = np.indices(spec.volume).reshape(3, -1).T
    distance = ((grid - centre) ** 2).sum(axis=1)
    mask = np.zeros(len(grid), bool)
    mask[np.argsort(distance, kind="stable")[: spec.num_voxels]] = True
    return mask.reshape(spec.volume)


def _write_table(path: Path, design: _Design) -> None:
    trials_of = np.argsort(design.stimulus_N, kind="stable").reshape(-1, NUM_REPEATS) + 1
    index_of = {nsd_id: i for i, nsd_id in enumerate(design.nsd_id_M.tolist())}
    repeats = [f"subject{s}_rep{r}" for s in range(1, 9) for r in range(NUM_REPEATS)]
    subjects = [f"subject{s}" for s in range(1, 9)]
    names = ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *subjects, *repeats])
        for nsd_id in range(NUM_PICTURES):
            index = index_of.get(nsd_id)
            shown = [0] * NUM_REPEATS if index is None else trials_of[index].tolist()
            shared = index is not None and bool(design.is_shared_M[index])
            about = [nsd_id, 500_000 + nsd_id, "train2017", "(0, 0, 0, 0)", 0.0, nsd_id, False, False, shared]
            seen = [int(index is not None), *[0] * 7]
            writer.writerow([*about, *seen, *shown, *[0] * (7 * NUM_REPEATS)])


def _write_stimuli(path: Path, spec: SynthSize, world: World, design: _Design) -> None:
    """Write imgBrick [73000, side, side, 3]; pictures that nobody saw take no room."""
    side = spec.picture_side
    with h5py.File(path, "w", track_order=False) as file:
        shape = (NUM_PICTURES, side, side, 3)
        brick = file.create_dataset("imgBrick", shape, np.uint8, chunks=(1, *shape[1:]), **_COMPRESSED)
        for stimulus, nsd_id in enumerate(design.nsd_id_M.tolist()):
            brick[nsd_id] = world.picture(stimulus, side)


def _write_hdf5_betas(path: Path, betas_NV: np.ndarray, mask_XYZ: np.ndarray) -> None:
    """Write `betas` [trials, Z, Y, X], the axes as MATLAB writes them."""
    x, y, z = mask_XYZ.shape
    with h5py.File(path, "w", track_order=False) as file:
        shape = (len(betas_NV), z, y, x)
        betas = file.create_dataset("betas", shape, np.int16, chunks=(1, *shape[1:]), **_COMPRESSED)
        for trial, volume_ZYX in enumerate(_volumes(betas_NV, mask_XYZ)):
            betas[trial] = volume_ZYX


def _write_nifti_betas(path: Path, betas_NV: np.ndarray, mask_XYZ: np.ndarray) -> None:
    with _nifti(path, mask_XYZ.shape, len(betas_NV)) as file:
        for volume_ZYX in _volumes(betas_NV, mask_XYZ):
            file.write(volume_ZYX.tobytes())  # x fastest, as NIfTI has it


def _volumes(betas_NV: np.ndarray, mask_XYZ: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each trial's volume int16 [Z, Y, X], in memory that the next one uses again."""
    x, y, z = np.nonzero(mask_XYZ)
    volume_ZYX = np.zeros(mask_XYZ.shape[::-1], "<i2")
    for beta_V in betas_NV:
        volume_ZYX[z, y, x] = beta_V
        yield volume_ZYX


@contextmanager
def _nifti(path: Path, shape: tuple[int, ...], num_volumes: int) -> Iterator[gzip.GzipFile]:
    """Open a `.nii.gz` of int16 volumes, 1.8 mm wide and centred on the scanner's origin, and write its
    header (NIfTI-1, 352 bytes).
    """
    rank = 3 if num_volumes == 1 else 4
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, rank, *shape, num_volumes, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _NIFTI_INT16, 16)  # datatype, bits
    struct.pack_into("<8f", header, 76, 1, _VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1, 0, 0, 0)  # pixdim
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # vox_offset, slope, intercept
    struct.pack_into("<B", header, 123, 10)  # mm and seconds
    struct.pack_into("<2h", header, 252, 0, 1)  # no qform; the sform is in the scanner's coordinates
    for axis, size in enumerate(shape):
        row = [_VOXEL_MM if column == axis else 0.0 for column in range(3)]
        struct.pack_into("<4f", header, 280 + 16 * axis, *row, -_VOXEL_MM * (size - 1) / 2)
    header[344:348] = b"n+1\0"
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        file.write(bytes(header))
        yield file
