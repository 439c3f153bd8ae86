"""MindEye2's files of the Natural Scenes Dataset → raw rows, one per trial (dataset `pscotti/mindeyev2`).

`betas_all_subj01_….hdf5` holds `betas` [trials, voxels] of a subject, z-scored by its authors. The tars
`subj01/{train,new_test,test}/*.tar` say which trials are whose: a sample has `behav.npy` [1, 17], of which
column 0 is the picture's number in NSD, column 5 the row of `betas`, column 16 whether all subjects saw the
picture (DOMAINS S3.c). `coco_images_224_float16.hdf5` has the pictures, `images` [73000, 3, 224, 224] from 0
to 1. Where there is `new_test`, the larger one, `test` is passed over.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.folder import find_files
from voxray.data.formats.npy import ArrayError
from voxray.data.formats.safe_hdf5 import child_array, damage_named, open_hdf5
from voxray.data.formats.webdataset import decode_field, find_tars, read_member, read_tar

BETAS_FILES = "betas_all_subj*.hdf5"
IMAGES_FILE = "coco_images_224_float16.hdf5"
BETAS, IMAGES, BEHAVIOUR = "betas", "images", "behav.npy"
TRIALS_PER_SESSION = 750
NUM_PICTURES = 73_000
_BETAS_NAME = re.compile(r"betas_all_(subj\d\d)_\w+\.hdf5")
_SUBJECT = re.compile(r"subj\d\d")
_SPLITS = {"train": "train", "new_test": "test", "test": "test"}
_NUM_COLUMNS, _PICTURE, _ROW = 17, 0, 5


@dataclass(frozen=True)
class Hdf5Rows:
    """A dataset [N, …] of an HDF5 file, read an entry at a time."""

    path: str
    name: str

    def read_row(self, index: int, num_axes: int = 1) -> np.ndarray:
        """Return entry `index`, flat where `num_axes` is 1. Raises ArrayError."""
        try:
            with open_hdf5(self.path) as file:
                rows: Any = child_array(file, self.name, "f")
                if not index < len(rows):
                    raise ValueError(f"'{self.name}' holds {len(rows)} entries, none is {index}")
                with damage_named():
                    values = np.asarray(rows[index])
        except ValueError as error:
            raise ArrayError(str(error)) from error
        return values.reshape(-1) if num_axes == 1 else values


@dataclass(frozen=True)
class HalfPicture:
    """Entry `index` of pictures [N, 3, H, W] with values from 0 to 1."""

    rows: Hdf5Rows
    index: int

    def read(self) -> np.ndarray:
        """Return uint8 [H, W, 3]. Raises BadRowError that names the file."""
        try:
            image_CHW = self.rows.read_row(self.index, 3).astype(np.float32)
        except ArrayError as error:
            raise BadRowError(f"'{self.rows.path}': {error}") from error
        if image_CHW.ndim != 3 or len(image_CHW) != 3 or not (image_CHW >= 0).all():
            raise BadRowError(
                f"'{self.rows.path}': '{self.rows.name}' holds no pictures [3, H, W]; replace it"
            )
        return np.round(image_CHW.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def read_mindeye2(source: Path) -> Iterator[RawRow | BadRow]:
    """Yield a row per trial that a tar names, of every subject that has betas.

    A row has sample_id (`subj01/trial00017`, the row of `betas`), subject, session (of 750 trials, from 1),
    session_id, nsd_id, stimulus_id (`nsd00000`, the group), split, array and index, as `load_fmri` reads
    them, num_voxels, origin, and picture where the pictures are there.

    Raises InputError for a folder without betas or tars, and damaged files.
    """
    betas = _find_betas(source)
    images = find_files(source, IMAGES_FILE)
    pictures = Hdf5Rows(str(images[0]), IMAGES) if images else None
    tars = _find_tars(source)
    for subject, array in betas.items():
        shape = _shape(array)
        if not tars.get(subject):
            raise InputError(
                f"'{source}' has betas of {subject}, but no {subject}/train/*.tar that says what was shown"
            )
        for split, tar in tars[subject]:
            for row in read_tar(source, tar, (BEHAVIOUR,)):
                if isinstance(row, BadRow):
                    yield row
                    continue
                try:
                    nsd_id, number = _behaviour(row, shape[0])
                except (ValueError, BadRowError) as error:
                    yield BadRow(row["origin"], str(error))
                    continue
                session = number // TRIALS_PER_SESSION + 1
                made = {
                    "sample_id": f"{subject}/trial{number:05d}",
                    "subject": subject,
                    "session": session,
                    "session_id": f"{subject}/{session}",
                    "nsd_id": nsd_id,
                    "stimulus_id": f"nsd{nsd_id:05d}",
                    "split": split,
                    "array": array,
                    "index": number,
                    "num_voxels": shape[-1],
                    "origin": row["origin"],
                }
                yield made | ({"picture": HalfPicture(pictures, nsd_id)} if pictures else {})


def _find_betas(source: Path) -> dict[str, Hdf5Rows]:
    """Return each subject's betas."""
    found: dict[str, Hdf5Rows] = {}
    for path in find_files(source, BETAS_FILES):
        if (match := _BETAS_NAME.fullmatch(path.name)) is None:
            continue
        if match[1] in found:
            raise InputError(f"'{found[match[1]].path}' and '{path}' are both of {match[1]}; keep one")
        found[match[1]] = Hdf5Rows(str(path), BETAS)
    if not found:
        raise InputError(f"'{source}' holds no {BETAS_FILES}; name the folder that holds MindEye2's files")
    return found


def _find_tars(source: Path) -> dict[str, list[tuple[str, Path]]]:
    """Return each subject's tars with the split that their folder declares."""
    found: dict[str, list[tuple[str, str, Path]]] = {}
    for tar in find_tars(source):
        folder, subject = tar.parent.name, tar.parent.parent.name
        if folder in _SPLITS and _SUBJECT.fullmatch(subject):
            found.setdefault(subject, []).append((folder, _SPLITS[folder], tar))
    chosen: dict[str, list[tuple[str, Path]]] = {}
    for subject, tars in found.items():
        is_new = any(folder == "new_test" for folder, _, _ in tars)
        chosen[subject] = [(split, tar) for folder, split, tar in tars if not (is_new and folder == "test")]
    return chosen


def _shape(array: Hdf5Rows) -> tuple[int, ...]:
    try:
        with open_hdf5(array.path) as file:
            shape = child_array(file, array.name, "f").shape
    except ValueError as error:
        raise InputError(f"'{array.path}': {error}") from error
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[1] != 1):
        raise InputError(f"'{array.path}': '{array.name}' is {list(shape)}, not [trials, voxels]; replace it")
    return shape


def _behaviour(row: RawRow, num_trials: int) -> tuple[int, int]:
    """Return the picture's number and the row of betas. Raises ValueError."""
    place = f"member '{BEHAVIOUR}'"
    (values,) = decode_field(BEHAVIOUR, read_member(row, BEHAVIOUR), place).values()
    if values.shape != (1, _NUM_COLUMNS) or values.dtype.kind not in "iuf":
        raise ValueError(f"{place} is {values.dtype} {list(values.shape)}, not [1, {_NUM_COLUMNS}]; mend it")
    picture, number = float(values[0, _PICTURE]), float(values[0, _ROW])
    for name, value, num in (("picture", picture, NUM_PICTURES), ("trial", number, num_trials)):
        if not (value.is_integer() and 0 <= value < num):
            raise ValueError(f"{place}: the {name} is {value:g}, not one of 0 … {num - 1}; mend it")
    return int(picture), int(number)
