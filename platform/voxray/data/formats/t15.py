"""The T15 brain-to-text layout: a folder per session, `t15.YYYY.MM.DD/data_{train,val,test}.hdf5` → raw rows.

Each file holds groups `trial_0000`, … with `input_features` [T, 512], `seq_class_ids` and `transcription`
(zero padded), and attributes `n_time_steps`, `seq_len`, `session`, `block_num`, `trial_num`. Layout and
class ids: Neuroprosthetics-Lab/nejm-brain-to-text, model_training (Card et al. 2024,
doi:10.5061/dryad.dncjsxm85).

The features are spike counts above threshold, then spike-band power, of 64 electrodes each in ventral 6v,
area 4, 55b and dorsal 6v.
"""

import datetime
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.safe_hdf5 import (
    child_array,
    child_group,
    damage_named,
    open_hdf5,
    whole_attribute,
)

BIN_S = 0.02
NUM_FEATURES = 512
# Class 0 is the CTC blank; 39 ARPAbet phonemes; the last is the silence between words.
PHONEMES: tuple[str, ...] = (
    *("BLANK", "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH"),
    *("IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW"),
    *("V", "W", "Y", "Z", "ZH", " | "),
)

_SESSION = re.compile(r"(\w+)\.(\d{4})\.(\d{2})\.(\d{2})")
_TRIAL = re.compile(r"trial_\d+")
_ARCHIVE_FOLDER = "hdf5_data_final"
_LABELS = ("seq_class_ids", "transcription")
# An hour of 20 ms bins: a header that claims more is damaged, and would fill the memory.
_MAX_TIME_STEPS = 180_000
_MAX_LABEL_ENTRIES = 100_000


def read_t15(source: Path, num_features: int = NUM_FEATURES) -> Iterator[RawRow | BadRow]:
    """Yield a raw row, or why there is none, per trial; sessions by date, then train, val, test, then trials.

    A row has sample_id (`t15.2023.08.11/train/trial_0000`), session, subject, session_date (ISO), day (the
    session's index by date among those found), split (the file's), block_num, trial_num, num_time_steps (of
    20 ms), num_features, num_phonemes (0 without a transcript), has_transcript, and path and trial for
    `load_t15_trial`. Only trials of the test files may lack a transcript.

    `source` holds the session folders, or their archive's folder `hdf5_data_final`. Raises InputError when it
    holds no session, a session's name has no date, a link leads out of it, or a file is truncated or has no
    trials.
    """
    files = _find_files(source)
    trials = _list_trials(source, files)
    for file in files:
        yield from _read_file(file, trials[file.path], num_features)


def load_t15_trial(row: RawRow) -> RawRow:
    """Return the row with features [T, 512] float32 (as stored), phonemes [L] int32 (1 … 40, into PHONEMES)
    and transcript (text); without a transcript L is 0 and the text is empty.

    Raises BadRowError, naming the file and the trial, for one whose arrays cannot be used.
    """
    try:
        with open_hdf5(row["path"]) as file:
            return row | _load(child_group(file, row["trial"]), row)
    except ValueError as error:
        raise BadRowError(f"'{row['path']}' {row['trial']}: {error}") from error


def load_t15_transcript(row: RawRow) -> str:
    """Return the trial's text alone, empty without a transcript. Raises BadRowError as `load_t15_trial`."""
    if not row["has_transcript"]:
        return ""
    try:
        with open_hdf5(row["path"]) as file:
            return _load_transcript(child_group(file, row["trial"]))
    except ValueError as error:
        raise BadRowError(f"'{row['path']}' {row['trial']}: {error}") from error


# --- folders and files
# ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    path: Path
    session: str
    subject: str
    date: datetime.date
    day: int
    split: str

    @property
    def name(self) -> str:
        return f"{self.session}/{self.path.name}"


def _find_files(source: Path) -> list[_File]:
    if not source.is_dir():
        raise InputError(
            f"'{source}' is no folder; name the folder that holds the sessions, t15.YYYY.MM.DD each"
        )
    folder = source / _ARCHIVE_FOLDER if (source / _ARCHIVE_FOLDER).is_dir() else source
    sessions: list[tuple[datetime.date, str, str]] = []
    problems = []
    for session in sorted(os.listdir(folder)):
        if any((folder / session / f"data_{split}.hdf5").is_file() for split in SPLITS):
            try:
                sessions.append(_parse_session(session))
            except ValueError as error:
                problems.append(f"'{folder / session}': {error}")
    files = [
        _File(path, session, subject, date, day, split)
        for day, (date, session, subject) in enumerate(sorted(sessions))
        for split in SPLITS
        if (path := folder / session / f"data_{split}.hdf5").is_file()
    ]
    root = source.resolve()
    problems += [
        f"'{file.path}' is a link out of '{source}'; links out of it are not followed, copy the file in"
        for file in files
        if not file.path.resolve().is_relative_to(root)
    ]
    if problems:
        raise InputError(*problems)
    if not files:
        raise InputError(
            f"'{source}' holds no session; a session is a folder t15.YYYY.MM.DD with data_train.hdf5"
        )
    return files


def _parse_session(name: str) -> tuple[datetime.date, str, str]:
    """Return the date, the name and the subject of a session's folder."""
    match = _SESSION.fullmatch(name)
    if match is None:
        raise ValueError(
            "the session's folder must be named like t15.2023.08.11, so that days can be ordered"
        )
    try:
        return datetime.date(int(match[2]), int(match[3]), int(match[4])), name, match[1]
    except ValueError as error:
        raise ValueError(f"the session's folder names no date: {error}; rename it") from None


def _list_trials(source: Path, files: list[_File]) -> dict[Path, list[str]]:
    """Return each file's entries. All files are opened first, so that all bad ones are named at once."""
    trials: dict[Path, list[str]] = {}
    problems = []
    for file in files:
        try:
            with open_hdf5(file.path) as opened:
                trials[file.path] = sorted(opened.keys(), key=lambda name: (len(name), name))
            if not trials[file.path]:
                raise ValueError("holds no trials; copy it again or remove it")
        except ValueError as error:
            problems.append(f"'{source}': {file.name} {error}")
    if problems:
        raise InputError(*problems)
    return trials


# --- one trial, without its arrays
# ----------------------------------------------------------------------------


def _read_file(file: _File, trials: list[str], num_features: int) -> list[RawRow | BadRow]:
    rows: list[RawRow | BadRow] = []
    try:
        with open_hdf5(file.path) as opened:
            for trial in trials:
                origin = f"{file.name} {trial}"
                try:
                    with damage_named():
                        rows.append(_read_trial(file, opened, trial, num_features) | {"origin": origin})
                except ValueError as error:
                    rows.append(BadRow(origin, str(error)))
    except ValueError as error:
        raise InputError(f"{file.name} {error}") from error
    return rows


def _read_trial(file: _File, opened: h5py.File, trial: str, num_features: int) -> RawRow:
    if not _TRIAL.fullmatch(trial):
        raise ValueError("no trial; entries are named like trial_0000, remove or rename this one")
    group = child_group(opened, trial)
    _check_session(group, file)
    num_time_steps = whole_attribute(group, "n_time_steps")
    _check_features(group, num_time_steps, num_features)
    has_transcript = _has_transcript(group, file)
    return {
        "sample_id": f"{file.session}/{file.split}/{trial}",
        "session": file.session,
        "subject": file.subject,
        "session_date": file.date.isoformat(),
        "day": file.day,
        "split": file.split,
        "block_num": whole_attribute(group, "block_num"),
        "trial_num": whole_attribute(group, "trial_num"),
        "num_time_steps": num_time_steps,
        "num_features": num_features,
        "num_phonemes": _num_phonemes(group) if has_transcript else 0,
        "has_transcript": has_transcript,
        "path": str(file.path),
        "trial": trial,
    }


def _check_session(group: h5py.Group, file: _File) -> None:
    """Refuse a trial whose own session is of another day: its day layer would be the wrong one."""
    if "session" not in group.attrs:
        raise ValueError("the attribute 'session' is missing; add it")
    value = group.attrs["session"]
    named = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if named != file.session:
        raise ValueError(
            f"the attribute 'session' is '{named:.60}', the folder '{file.session}'; move or mend the trial"
        )


def _check_features(group: h5py.Group, num_time_steps: int, num_features: int) -> h5py.Dataset:
    features = child_array(group, "input_features", "f")
    shape = "×".join(map(str, features.shape))
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(f"'input_features' has the shape {shape}; time steps × {num_features} are needed")
    if not 1 <= num_time_steps <= features.shape[0]:
        raise ValueError(
            f"n_time_steps is {num_time_steps}, but 'input_features' has the shape {shape}; mend one"
        )
    if num_time_steps > _MAX_TIME_STEPS:
        raise ValueError(f"n_time_steps is {num_time_steps}; a trial has at most {_MAX_TIME_STEPS}, cut it")
    return features


def _has_transcript(group: h5py.Group, file: _File) -> bool:
    present = [name for name in _LABELS if name in group.keys()]  # noqa: SIM118 - keys() follows no link
    missing = [name for name in _LABELS if name not in present]
    if "seq_len" not in group.attrs:
        missing.append("attribute seq_len")
    if not missing:
        return True
    if present or file.split != "test":
        raise ValueError(
            f"{', '.join(missing)} missing; only test trials may lack a transcript, and then all of it"
        )
    return False


def _num_phonemes(group: h5py.Group) -> int:
    count, ids = whole_attribute(group, "seq_len"), _label_array(group, "seq_class_ids")
    if not 1 <= count <= len(ids):
        raise ValueError(f"seq_len is {count}, but 'seq_class_ids' has {len(ids)} entries; mend one")
    return count


def _label_array(group: h5py.Group, name: str) -> h5py.Dataset:
    labels = child_array(group, name, "iu")
    if labels.ndim != 1 or labels.shape[0] > _MAX_LABEL_ENTRIES:
        shape = "×".join(map(str, labels.shape))
        raise ValueError(f"'{name}' has the shape {shape}; one row of at most {_MAX_LABEL_ENTRIES} is needed")
    return labels


# --- its arrays
# -----------------------------------------------------------------------------------------------


def _load(group: h5py.Group, row: RawRow) -> RawRow:
    features = _check_features(group, row["num_time_steps"], row["num_features"])
    values = features[: row["num_time_steps"]].astype(np.float32, copy=False)
    if num_bad := np.size(values) - np.count_nonzero(np.isfinite(values)):
        raise ValueError(f"'input_features' holds {num_bad} values that are not finite; remove the trial")
    labelled = row["has_transcript"]
    return {
        "features": values,
        "phonemes": _load_phonemes(group, row["num_phonemes"]) if labelled else np.zeros(0, np.int32),
        "transcript": _load_transcript(group) if labelled else "",
    }


def _load_phonemes(group: h5py.Group, count: int) -> np.ndarray:
    ids = _label_array(group, "seq_class_ids")[:]
    outside = ids[:count][(ids[:count] < 1) | (ids[:count] >= len(PHONEMES))]
    if len(outside):
        raise ValueError(
            f"'seq_class_ids' holds {outside[0]} before seq_len; ids are 1 … {len(PHONEMES) - 1}"
        )
    if ids[count:].any():
        raise ValueError(f"'seq_class_ids' goes on after its seq_len of {count}; mend seq_len")
    return ids[:count].astype(np.int32)


def _load_transcript(group: h5py.Group) -> str:
    """Return the text before the first zero."""
    codes = _label_array(group, "transcription")[:]
    (ends,) = np.nonzero(codes == 0)
    codes = codes[: ends[0]] if len(ends) else codes
    if not len(codes) or codes.min() < 0 or codes.max() > 255:
        raise ValueError(
            "'transcription' is empty or holds no bytes; it must be character codes, zero padded"
        )
    try:
        return codes.astype(np.uint8).tobytes().decode()
    except UnicodeDecodeError:
        raise ValueError("'transcription' is not UTF-8 text; mend it") from None
