"""Raw layouts → raw rows, one per picture and subject: MindEye's tars, MindEye2's files, `.npz` patterns.

The latter two have a row per trial; the trials of a picture become its repeats.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.schema import Column
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import load_targets, read_finite
from voxray.data.formats.fmri_npz import read_fmri_npz
from voxray.data.formats.folder import find_files
from voxray.data.formats.mindeye import NUM_PICTURES, load_mindeye, read_mindeye
from voxray.data.formats.mindeye2 import BETAS_FILES, read_mindeye2
from voxray.data.formats.pictures import as_png
from voxray.tasks.mindeye.config import MindEyePrepareConfig

# Shape letters: R repeats, V voxels.

Rows = Iterator[RawRow | BadRow]


def raw_rows(source: Path, prepare: MindEyePrepareConfig) -> Rows:
    """Yield the rows of a folder in any of the layouts, as `read_mindeye` gives them; of trials `places`
    (where each repeat's voxels lie) and `picture`, where there is one, stand for the members of a tar.

    Raises InputError for what the layout's reader refuses, and a picture whose trials are in two splits.
    """
    if find_files(source, BETAS_FILES):
        return _by_picture(read_mindeye2(source))
    if any(path.name != TARGETS for path in source.glob("*.npz")):
        return _by_picture(read_fmri_npz(source, targets=prepare.targets))
    return read_mindeye(source, prepare.voxels)


def raw_columns(row: RawRow, prepare: MindEyePrepareConfig) -> dict[str, Column]:
    """Return the target columns that `targets` names in `.npz` files, which the first row shows to be there.

    Raises InputError where pictures are asked for that are not there.
    """
    if "places" in row and "picture" not in row:
        for key, wants in (("clip", prepare.clip), ("vae", prepare.vae.model)):
            if wants:
                raise InputError(f"{row['origin']}: there are no pictures, which `{key}` needs; leave it out")
        if prepare.images != "none":
            raise InputError(f"{row['origin']}: there are no pictures to store; set images=none")
    return {name: Column("float32", (None,), unit="as in the file") for name in row.get("own_targets", {})}


def load(row: RawRow) -> RawRow:
    """Return the row with voxels float32 [R, V] and its targets, and where there is a picture with image
    uint8 [H, W, 3] and encoded, its bytes. Raises BadRowError, naming file and trial.
    """
    if "places" not in row:
        return load_targets(load_mindeye(row))
    loaded = {"voxels": np.stack([read_finite(row, array, index, 1) for array, index in row["places"]])}
    for name, array in row.get("own_targets", {}).items():
        loaded[name] = read_finite(row, array, row["index"], len(array.shape) - 1).reshape(-1)
    if "picture" not in row:
        return load_targets(row | loaded)
    image = row["picture"].read()
    return load_targets(row | loaded | {"image": image, "encoded": as_png(image)})


def _by_picture(rows: Rows) -> Rows:
    """Yield a row per subject and picture. All have as many repeats as the picture that was shown most often:
    where there are fewer trials they come again, and `num_unique` says how many there are.
    """
    trials_of: dict[tuple[str, str], list[RawRow]] = {}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        else:
            trials_of.setdefault((row["subject"], row["stimulus_id"]), []).append(row)
    num_repeats = max(map(len, trials_of.values()), default=0)
    for (subject, stimulus), trials in trials_of.items():
        _check_one_split(trials)
        repeats = [trials[i % len(trials)] for i in range(num_repeats)]
        yield trials[0] | {
            "sample_id": f"{subject}/{stimulus}",
            "nsd_id": trials[0].get("nsd_id", zlib.crc32(stimulus.encode()) % NUM_PICTURES),
            "trials": [trial["index"] for trial in repeats],
            "num_unique": len(trials),
            "num_repeats": num_repeats,
            "places": [(trial["array"], trial["index"]) for trial in repeats],
        }


def _check_one_split(trials: Sequence[RawRow]) -> None:
    by_split = {trial["split"]: trial for trial in trials if "split" in trial}
    if len(by_split) > 1:
        (split, one), (other, another), *_ = by_split.items()
        raise InputError(
            f"stimulus '{one['stimulus_id']}' is in two splits: {one['origin']} in {split}, "
            f"{another['origin']} in {other}; remove one of them"
        )
