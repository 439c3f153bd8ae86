"""The Natural Scenes Dataset's own files → raw rows, one per trial (Allen et al. 2022, NSD data manual).

Needed anywhere below the folder: `nsd_stim_info_merged.csv` (which trial showed which of 73,000 pictures),
`subjNN/…/betas_sessionNN.hdf5` or `.nii.gz` (750 trials each) and `subjNN/…/nsdgeneral.nii.gz`, the mask.
Used where they are: `nsd_stimuli.hdf5` (the pictures) and `clip.npz` in the folder itself.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.betas_hdf5 import read_betas_header
from voxray.data.formats.clip_targets import find_targets
from voxray.data.formats.folder import find_files, the_file
from voxray.data.formats.nifti import SeriesHeader, read_header, read_mask
from voxray.data.formats.pictures import NsdPictures
from voxray.data.formats.volumes import NSD_BETA_SCALE, MaskedVolumes

STIMULUS_TABLE = "nsd_stim_info_merged.csv"
MASK = "nsdgeneral.nii.gz"
TRIALS_PER_SESSION = 750
NUM_REPEATS = 3
MAX_TRIALS = 30_000  # 40 sessions
_BETAS = re.compile(r"betas_session(\d\d)\.(hdf5|nii\.gz|nii)")
_SUBJECT = re.compile(r"subj\d\d")


@dataclass(frozen=True)
class NsdOptions:
    """Which files are read and how: `betas` and `mask` are globs below the folder; no subject means all."""

    subjects: Sequence[str] = ()
    betas: str = "betas_session*"
    mask: str = MASK
    zscore: bool = True
    shared1000_to_test: bool = True


def read_nsd(source: Path, options: NsdOptions) -> Iterator[RawRow | BadRow]:
    """Yield a row per trial of every session whose betas are there.

    A row has sample_id (`subj01/trial00001`, counted from 1 over all sessions as NSD does), subject, session,
    session_id, nsd_id, stimulus_id (`nsd00000`, the group), volumes and span for `load_volumes`, num_voxels,
    origin; picture where the stimuli are there; targets and target_index where `clip.npz` is; split `test`
    for the 1,000 pictures that all subjects saw, if asked for.

    Raises InputError for a missing table, mask or session, files that do not fit together, and a subject that
    is not there.
    """
    sessions = _find_sessions(source, options)
    table = the_file(
        source, STIMULUS_TABLE, "stimulus table of NSD", "keep one; it is in nsddata/experiments"
    )
    pictures, targets = NsdPictures(source), find_targets(source)
    trials = _read_table(table, sorted({session.subject for session in sessions}))
    num_voxels: dict[str, int] = {}
    for session in sessions:
        if session.subject not in num_voxels:
            num_voxels[session.subject] = _count_voxels(session)
        for row in _rows(session, trials[session.subject], num_voxels[session.subject], options):
            if isinstance(row, BadRow):
                yield row
                continue
            row = pictures.add_to(row)
            yield targets.add_to(row) if targets else row


@dataclass(frozen=True)
class _Session:
    """A session's betas and the mask that goes with them."""

    subject: str
    number: int
    path: Path
    mask: Path
    header: SeriesHeader


@dataclass(frozen=True)
class _Trials:
    """Of one subject: nsd_id of trial t at [t], -1 where none; is_shared of nsd_id i at [i]."""

    nsd_id: np.ndarray
    is_shared: np.ndarray


# --- the sessions' files
# -------------------------------------------------------------------------------------------------------


def _find_sessions(source: Path, options: NsdOptions) -> list[_Session]:
    found: dict[tuple[str, int], Path] = {}
    for path in find_files(source, options.betas):
        match = _BETAS.fullmatch(path.name)
        if match is None:
            continue
        key = (_subject_of(source, path), int(match[1]))
        other = found.setdefault(key, path)
        if other.parent != path.parent:
            raise InputError(
                f"session {key[1]} of {key[0]} is in two folders, '{other.parent}' and '{path.parent}'; "
                "choose one with `files`, e.g. files=func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session*"
            )
        if path.suffix == ".hdf5":  # the same numbers, and read faster
            found[key] = path
    subjects = sorted({subject for subject, _ in found})
    if unknown := [subject for subject in options.subjects if subject not in subjects]:
        raise InputError(
            f"'{source}' has no betas of '{unknown[0]}'; it has: {', '.join(subjects) or 'none'}"
        )
    chosen = {key: path for key, path in found.items() if not options.subjects or key[0] in options.subjects}
    if not chosen:
        raise InputError(
            f"'{source}' holds no {options.betas} below a folder subjNN; name the folder of NSD's betas"
        )
    masks = {subject: _find_mask(source, subject, options.mask) for subject, _ in chosen}
    return [
        _Session(subject, number, path, masks[subject], _header(path, number))
        for (subject, number), path in sorted(chosen.items())
    ]


def _subject_of(source: Path, path: Path) -> str:
    names = [part for part in path.relative_to(source).parts if _SUBJECT.fullmatch(part)]
    if not names and _SUBJECT.fullmatch(source.name):
        names = [source.name]
    if len(set(names)) != 1:
        raise InputError(f"'{path}' does not lie below one folder subjNN, so its subject is unknown; move it")
    return names[0]


def _find_mask(source: Path, subject: str, pattern: str) -> Path:
    found = [path for path in find_files(source, pattern) if _subject_of(source, path) == subject]
    if len(found) != 1:
        shown = ", ".join(str(path.relative_to(source)) for path in found) or "none"
        raise InputError(
            f"'{source}' must hold one mask '{pattern}' of {subject}, it holds {shown}; set `mask` to the "
            "one in the betas' space, e.g. mask=func1pt8mm/roi/nsdgeneral.nii.gz"
        )
    return found[0]


def _header(path: Path, number: int) -> SeriesHeader:
    try:
        header = read_betas_header(path) if path.suffix == ".hdf5" else read_header(path)
        if header.num_volumes != TRIALS_PER_SESSION:
            raise ValueError(f"it holds {header.num_volumes} trials, a session has {TRIALS_PER_SESSION}")
        if not 1 <= number <= MAX_TRIALS // TRIALS_PER_SESSION:
            raise ValueError(f"there is no session {number}; NSD has 40")
    except ValueError as error:
        raise InputError(f"'{path}': {error}") from error
    return header


def _count_voxels(session: _Session) -> int:
    try:
        return int(read_mask(session.mask).sum())
    except ValueError as error:
        raise InputError(f"'{session.mask}': {error}") from error


def _rows(
    session: _Session, trials: _Trials, num_voxels: int, options: NsdOptions
) -> Iterator[RawRow | BadRow]:
    scale = NSD_BETA_SCALE if session.header.is_integer else 1.0
    volumes = MaskedVolumes(str(session.path), str(session.mask), options.zscore, scale)
    for index in range(TRIALS_PER_SESSION):
        trial = (session.number - 1) * TRIALS_PER_SESSION + index + 1
        origin = f"{session.subject} {session.path.name} trial {trial}"
        nsd_id = int(trials.nsd_id[trial])
        if nsd_id < 0:
            yield BadRow(origin, f"{STIMULUS_TABLE} names no picture for it; use NSD's own table")
            continue
        row: RawRow = {
            "sample_id": f"{session.subject}/trial{trial:05d}",
            "subject": session.subject,
            "session": session.number,
            "session_id": f"{session.subject}/{session.number}",
            "nsd_id": nsd_id,
            "stimulus_id": stimulus_name(nsd_id),
            "volumes": volumes,
            "span": (index, index + 1),
            "num_voxels": num_voxels,
            "origin": origin,
        }
        if options.shared1000_to_test and trials.is_shared[nsd_id]:
            row["split"] = "test"
        yield row


def stimulus_name(nsd_id: int) -> str:
    """Return the stimulus' id, `nsd` and five digits."""
    return f"nsd{nsd_id:05d}"


# --- the table
# -------------------------------------------------------------------------------------------------------


def _read_table(path: Path, subjects: Sequence[str]) -> dict[str, _Trials]:
    """Return each subject's trials. Columns: nsdId, shared1000 and subjectN_repK, 0 where not shown."""
    columns = {
        subject: [f"subject{int(subject[4:])}_rep{repeat}" for repeat in range(NUM_REPEATS)]
        for subject in subjects
    }
    nsd_ids = {subject: np.full(MAX_TRIALS + 1, -1, np.int64) for subject in subjects}
    shared: set[int] = set()
    largest = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        wanted = ["nsdId", "shared1000", *(name for names in columns.values() for name in names)]
        if missing := [name for name in wanted if name not in (reader.fieldnames or [])]:
            raise InputError(f"'{path}' has no column '{missing[0]}'; use NSD's own table")
        for cells in reader:
            place = f"'{path}' line {reader.line_num}"
            nsd_id = _whole(cells["nsdId"], place, "nsdId")
            largest = max(largest, nsd_id)
            if (cells["shared1000"] or "").strip().lower() in ("true", "1"):
                shared.add(nsd_id)
            for subject, names in columns.items():
                for name in names:
                    _note_trial(
                        nsd_ids[subject], _whole(cells[name], place, name), nsd_id, f"{place}: {name}"
                    )
    is_shared = np.zeros(largest + 1, bool)
    is_shared[sorted(shared)] = True
    return {subject: _Trials(nsd_ids[subject], is_shared) for subject in subjects}


def _note_trial(nsd_id_of_trial: np.ndarray, trial: int, nsd_id: int, place: str) -> None:
    if trial > MAX_TRIALS:
        raise InputError(f"{place} is trial {trial}, there are {MAX_TRIALS}; use NSD's own table")
    if trial == 0:
        return
    if nsd_id_of_trial[trial] >= 0:
        raise InputError(
            f"{place}: trial {trial} showed nsdId {nsd_id_of_trial[trial]} before; use NSD's own table"
        )
    nsd_id_of_trial[trial] = nsd_id


def _whole(text: str | None, place: str, name: str) -> int:
    text = (text or "").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InputError(f"{place}: {name} is '{text}', no whole number; use NSD's own table")
    return int(text)
