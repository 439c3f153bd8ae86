"""A small folder in NSD's layout, written by nibabel, h5py and csv, for the tests of its readers."""

import csv
from pathlib import Path

import h5py
import numpy as np

SHAPE = (5, 4, 3)
NUM_PICTURES = 600
SESSION = 750


def betas_of(subject: int, session: int) -> np.ndarray:
    """Return int16 [X, Y, Z, 750]."""
    rng = np.random.default_rng([subject, session])
    return rng.normal(rng.normal(0, 300), 600, (*SHAPE, SESSION)).astype(np.int16)


def roi_of(subject: int) -> np.ndarray:
    """Return int16 [X, Y, Z] with -1, 0 and 1, as NSD's ROIs have."""
    return np.random.default_rng(subject).integers(-1, 2, SHAPE).astype(np.int16)


def shown_by(subject: int) -> np.ndarray:
    """Return the nsdId of trials 1 … 1,500 (two sessions): 500 of 600 pictures, three times each."""
    rng = np.random.default_rng([subject, 9])
    return rng.permutation(np.repeat(rng.permutation(NUM_PICTURES)[:500], 3))


def pixels_of(nsd_id: int, side: int = 6) -> np.ndarray:
    return np.random.default_rng(nsd_id).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_nsd(
    folder: Path, subjects: tuple[int, ...] = (1,), kind: str = "nii.gz", sessions: int = 2
) -> Path:
    for subject in subjects:
        for session in range(1, sessions + 1):
            write_betas(betas_folder(folder, subject), betas_of(subject, session), session, kind)
        save_nifti(folder / f"ppdata/subj{subject:02d}/func1pt8mm/roi/nsdgeneral.nii.gz", roi_of(subject))
    write_table(folder / "nsd_stim_info_merged.csv", subjects)
    return folder


def betas_folder(folder: Path, subject: int = 1) -> Path:
    return folder / f"betas/subj{subject:02d}/func1pt8mm"


def write_betas(folder: Path, betas: np.ndarray, session: int, kind: str) -> Path:
    path = folder / f"betas_session{session:02d}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["betas"] = betas.T  # MATLAB's axes come out reversed
    else:
        save_nifti(path, betas)
    return path


def save_nifti(path: Path, values: np.ndarray) -> None:
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def write_table(path: Path, subjects: tuple[int, ...], **changed: str) -> None:
    """Write NSD's stimulus table; `changed` replaces cells of the first row that was shown."""
    trials = {s: {i: np.flatnonzero(shown_by(s) == i) + 1 for i in range(NUM_PICTURES)} for s in subjects}
    names = [f"subject{s}_rep{r}" for s in range(1, 9) for r in range(3)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", "cocoId", "nsdId", "shared1000", *names])
        writer.writeheader()
        for nsd_id in range(NUM_PICTURES):
            row = {"": nsd_id, "cocoId": nsd_id + 7, "nsdId": nsd_id, "shared1000": nsd_id % 5 == 0}
            row |= dict.fromkeys(names, 0)
            for subject, shown in trials.items():
                for repeat, trial in enumerate(shown[nsd_id]):
                    row[f"subject{subject}_rep{repeat}"] = trial
            writer.writerow(row | (changed if nsd_id == shown_by(subjects[0])[0] else {}))


def write_stimuli(folder: Path) -> None:
    with h5py.File(folder / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = np.stack([pixels_of(i) for i in range(NUM_PICTURES)])
