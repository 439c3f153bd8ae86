"""MindEye's tars of the Natural Scenes Dataset → raw rows: `{split}_subj0{s}_{i}.tar`, below a folder each.

A sample is one picture seen by one subject: `jpg` or `png`, `nsdgeneral.npy` [repeats, voxels] (3 repeats;
betas, z-scored per session), `coco73k.npy` (which of the 73,000 pictures), `trial.npy`, `num_uniques.npy`
(how many of the repeats are different ones). The layout is that of `pscotti/naturalscenesdataset`.
"""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.npy import ArrayError, read_header
from voxray.data.formats.pictures import decode_rgb
from voxray.data.formats.webdataset import Members, as_ids, decode_field, read_member, read_webdataset

NUM_PICTURES = 73_000
TAR_NAME = re.compile(r"(train|val|test)_(subj\d\d)_\d+\.tar")
_FIELDS = ("jpg;png", "coco73k.npy", "trial.npy", "num_uniques.npy")
_MAX_NPY_HEADER_BYTES = 4096


def read_mindeye(source: Path, voxels: str = "nsdgeneral.npy") -> Iterator[RawRow | BadRow]:
    """Yield a row per picture and subject, with the split that the tar's name declares.

    A row has sample_id (`subj01/train/sample000000300`), nsd_id (coco73k), stimulus_id (`nsd00000`), subject,
    split, trials (list of int, one per repeat), num_unique (int), num_repeats, num_voxels (from the header),
    voxels_field, and what read_webdataset gives. The group is stimulus_id.

    Raises InputError for a tar whose name says neither split nor subject, for a stimulus in two splits, and
    for what read_webdataset refuses.
    """
    split_of: dict[str, tuple[str, str]] = {}
    num_voxels: dict[str, tuple[int, str]] = {}
    for row in read_webdataset(source, (voxels, *_FIELDS)):
        if isinstance(row, BadRow):
            yield row
            continue
        split, subject = _parse_name(Path(row["tar"]))
        try:
            row |= {"split": split, "subject": subject, "voxels_field": voxels} | _metadata(row, voxels)
            width, first = num_voxels.setdefault(subject, (row["num_voxels"], row["origin"]))
            if width != row["num_voxels"]:
                raise ValueError(
                    f"{row['num_voxels']} voxels, but {first} of the same {subject} has {width}; remove one"
                )
        except (ValueError, BadRowError) as error:
            yield BadRow(row["origin"], str(error))
            continue
        row["sample_id"] = f"{subject}/{split}/{row['key']}"
        other, place = split_of.setdefault(row["stimulus_id"], (split, row["origin"]))
        if other != split:
            raise InputError(
                f"stimulus '{row['stimulus_id']}' is in two splits: {place} in {other}, {row['origin']} in "
                f"{split}; remove one of them"
            )
        yield row


def load_mindeye(row: RawRow) -> RawRow:
    """Return the row with voxels float32 [repeats, voxels], image uint8 [height, width, 3] (RGB) and encoded,
    the image's bytes as they are in the tar.

    Raises BadRowError, naming tar and sample, for voxels that are not finite and an image that is damaged.
    """
    field = row["voxels_field"]
    (voxels,) = decode_field(field, read_member(row, field), f"{row['origin']} member '{field}'").values()
    voxels = voxels.astype(np.float32)
    if num_bad := int((~np.isfinite(voxels)).sum()):
        raise BadRowError(
            f"{row['origin']}: {num_bad} of {voxels.size} values in '{field}' are not finite; remove it"
        )
    image_field = next(name for name in ("jpg", "png") if name in row["members"])
    encoded = read_member(row, image_field)
    image = decode_rgb(encoded, f"{row['origin']} member '{image_field}'")
    return row | {"voxels": voxels, "image": image, "encoded": encoded}


@dataclass(frozen=True)
class SampleMember:
    """A member of a sample in a tar: voxels [repeats, voxels], or the picture."""

    path: str
    key: str
    field: str
    origin: str
    members: Mapping[str, tuple[int, int]]

    @property
    def name(self) -> str:
        """Return the member's name."""
        return f"{self.key}.{self.field}"

    def read_row(self, index: int, num_axes: int = 1) -> np.ndarray:
        """Return repeat `index`, [voxels]. Raises ArrayError."""
        (values_RV,) = decode_field(self.field, self._content(), f"member '{self.name}'").values()
        if not index < len(values_RV):
            raise ArrayError(f"'{self.name}' ends before repeat {index}; the file changed, prepare again")
        return values_RV[index]

    def read(self) -> np.ndarray:
        """Return the picture, uint8 [H, W, 3]. Raises BadRowError for a damaged one."""
        return decode_rgb(self._content(), f"{self.origin} member '{self.name}'")

    def _content(self) -> bytes:
        members: Members = dict(self.members)
        return read_member({"tar": self.path, "key": self.key, "members": members}, self.field)


def read_mindeye_trials(source: Path, voxels: str = "nsdgeneral.npy") -> Iterator[RawRow | BadRow]:
    """Yield a row per trial: the repeats of each sample that are different trials.

    A row has sample_id (`subj01/train/sample000000300/0`), nsd_id, stimulus_id, subject, split, array and
    index (where the voxels lie, as `load_fmri` reads them), num_voxels, picture and origin. Raises InputError
    as `read_mindeye` does.
    """
    for row in read_mindeye(source, voxels):
        if isinstance(row, BadRow):
            yield row
            continue
        trials: list[int] = row["trials"]
        if len(trials) != row["num_repeats"]:
            reason = f"'trial.npy' names {len(trials)} trials, but there are {row['num_repeats']} repeats"
            yield BadRow(row["origin"], f"{reason}; pack the sample again")
            continue
        image_field = next(name for name in ("jpg", "png") if name in row["members"])
        place = (row["tar"], row["key"])
        array = SampleMember(*place, voxels, row["origin"], row["members"])
        picture = SampleMember(*place, image_field, row["origin"], row["members"])
        kept = {name: row[name] for name in ("nsd_id", "stimulus_id", "subject", "split", "num_voxels")}
        for index in sorted({trial: i for i, trial in reversed(list(enumerate(trials)))}.values()):
            yield kept | {
                "sample_id": f"{row['sample_id']}/{index}",
                "array": array,
                "index": index,
                "picture": picture,
                "origin": f"{row['origin']} repeat {index}",
            }


def _parse_name(tar: Path) -> tuple[str, str]:
    match = TAR_NAME.fullmatch(tar.name)
    if match is None:
        raise InputError(f"'{tar}' is not named like 'train_subj01_0.tar'; name split and subject so")
    return match[1], match[2]


def _metadata(row: RawRow, voxels: str) -> dict[str, Any]:
    """Read the small members, and of the voxels the header alone."""
    small = {name: _integers(row, f"{name}.npy") for name in ("coco73k", "trial", "num_uniques")}
    for name in ("coco73k", "num_uniques"):
        if len(small[name]) != 1:
            raise ValueError(f"'{name}.npy' holds {len(small[name])} numbers, not one; pack the sample again")
    ((picture,), trials, (num_unique,)) = small.values()
    if not 0 <= picture < NUM_PICTURES:
        raise ValueError(f"'coco73k.npy' is {picture}, not in 0 … {NUM_PICTURES - 1}; mend it")
    num_repeats, num_voxels = _voxel_shape(row, voxels)
    if not 1 <= num_unique <= num_repeats:
        raise ValueError(f"'num_uniques.npy' is {num_unique}, but there are {num_repeats} repeats; mend it")
    return {
        "nsd_id": picture,
        "stimulus_id": f"nsd{picture:05d}",
        "trials": trials,
        "num_unique": num_unique,
        "num_repeats": num_repeats,
        "num_voxels": num_voxels,
    }


def _integers(row: RawRow, field: str) -> list[int]:
    place = f"member '{field}'"
    (array,) = decode_field(field, read_member(row, field), place).values()
    try:
        return as_ids(array)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; mend it") from None


def _voxel_shape(row: RawRow, field: str) -> tuple[int, int]:
    offset, size = row["members"][field]
    start = read_member({**row, "members": {field: (offset, min(size, _MAX_NPY_HEADER_BYTES))}}, field)
    header = read_header(io.BytesIO(start))
    if len(header.shape) != 2 or 0 in header.shape or header.dtype.kind != "f":
        raise ValueError(
            f"'{field}' is {header.dtype} {list(header.shape)}, not floating point [repeats, voxels]; "
            "name another member"
        )
    return header.shape[0], header.shape[1]
