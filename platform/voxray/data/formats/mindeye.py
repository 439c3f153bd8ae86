"""MindEye's tars of the Natural Scenes Dataset → raw rows: `{split}_subj0{s}_{i}.tar`, below a folder each.

A sample is one picture seen by one subject: `jpg` or `png`, `nsdgeneral.npy` [repeats, voxels] (3 repeats;
betas, z-scored per session), `coco73k.npy` (which of the 73,000 pictures), `trial.npy`, `num_uniques.npy`
(how many of the repeats are different ones). The layout is that of `pscotti/naturalscenesdataset`.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from voxray.config.errors import InputError
from voxray.core.task import BadRow, BadRowError, RawRow
from voxray.data.formats.npy import read_header
from voxray.data.formats.pictures import decode_rgb
from voxray.data.formats.webdataset import as_ids, decode_field, read_member, read_webdataset

NUM_PICTURES = 73_000
_TAR_NAME = re.compile(r"(train|val|test)_(subj\d\d)_\d+\.tar")
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


def _parse_name(tar: Path) -> tuple[str, str]:
    match = _TAR_NAME.fullmatch(tar.name)
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
