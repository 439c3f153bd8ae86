"""Raw layouts of fMRI → raw rows: NSD's folders, BOLD with events, `.npz` patterns, MindEye's files.

`raw_rows` completes what the readers give, so that all rows have what the schema needs, and says which
columns there are.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from voxray.config.errors import InputError
from voxray.core.clip_tower import tower_columns
from voxray.core.schema import BYTES, Column
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.bold_events import EVENTS, EventOptions, read_bold_events
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import find_targets, load_targets
from voxray.data.formats.fmri_npz import load_fmri, read_fmri_npz
from voxray.data.formats.folder import find_files
from voxray.data.formats.mindeye import TAR_NAME, read_mindeye_trials
from voxray.data.formats.mindeye2 import BETAS_FILES, read_mindeye2
from voxray.data.formats.nsd import MASK, STIMULUS_TABLE, NsdOptions, read_nsd
from voxray.data.formats.volumes import load_volumes
from voxray.tasks.fmri_clip.config import FmriClipPrepareConfig
from voxray.tasks.fmri_clip.targets import LABEL

NO_NUMBER = -1  # of a session or an nsd_id that the raw files do not have

Rows = Iterator[RawRow | BadRow]


def raw_rows(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    """Yield the rows of a folder in any of the layouts, those of `subjects` alone, with every column that
    needs no file.

    Raises InputError for an unknown or ambiguous layout, a subject that is not there, rows of different
    widths, and what the layout's reader refuses.
    """
    subjects: set[str] = set()
    sessions: set[int] = set()
    first: RawRow | None = None
    for row in _READERS[_layout(source, prepare)](source, prepare):
        if isinstance(row, BadRow):
            yield row
            continue
        subjects.add(row["subject"])
        if prepare.subjects and row["subject"] not in prepare.subjects:
            continue
        first = first or row
        sessions.add(row.get("session", NO_NUMBER))
        _check_same_width(first, row)
        yield _completed(row, prepare)
    if missing := sorted(set(prepare.subjects) - subjects):
        raise InputError(f"'{source}' has no subject '{missing[0]}'; it has: {', '.join(sorted(subjects))}")
    if absent := sorted(set(prepare.test_sessions) - sessions):
        there = ", ".join(map(str, sorted(sessions)))
        raise InputError(f"'{source}' has no session {absent[0]} for test_sessions; it has: {there}")


def load_pattern(row: RawRow) -> RawRow:
    """Return the row with x and the targets of the raw files. Raises BadRowError."""
    return load_targets(load_volumes(row)) if "volumes" in row else load_fmri(row)


def raw_columns(row: RawRow, prepare: FmriClipPrepareConfig) -> dict[str, Column]:
    """Return the columns that the first row shows to be there: targets of the raw files, and pictures.

    Raises InputError where pictures are asked for that are not there.
    """
    columns = {
        name: Column("float32", tuple(array.shape[1:]), unit="CLIP embedding")
        for name, array in row.get("targets", {}).items()
    }
    for name in row.get("own_targets", {}):
        columns[name] = Column("float32", (None,), unit="as in the raw files")
    for tower in prepare.clip:
        if both := sorted(columns.keys() & tower_columns(tower).keys()):
            raise InputError(
                f"{row['origin']}: the raw files hold the target '{both[0]}', and clip={tower.model} makes "
                f"one of that name; give the tower a `prefix`, or move {TARGETS} away"
            )
    if prepare.clip and "picture" not in row:
        raise InputError(
            f"{row['origin']}: clip={prepare.clip[0].model} needs the pictures, and the raw files hold none; "
            "put them there (nsd_stimuli.hdf5), or leave `clip` out"
        )
    how = prepare.images
    if how == "auto":
        how = "encoded" if "picture" in row and not (columns or prepare.clip) else "none"
    if how != "none" and "picture" not in row:
        raise InputError(f"{row['origin']}: there are no pictures to store; set images=none")
    side = prepare.image_size
    if how == "encoded":
        columns["image"] = Column(BYTES, unit=f"PNG, RGB, {side} × {side}")
    elif how == "pixels":
        columns["image"] = Column("uint8", (3, side, side), unit="RGB 0-255")
    return columns


def clip_columns(prepare: FmriClipPrepareConfig) -> dict[str, Column]:
    """Return the columns that the towers in `clip` make; a width that no table tells is None."""
    columns: dict[str, Column] = {}
    for tower in prepare.clip:
        columns |= tower_columns(tower)
    return columns


def _completed(row: RawRow, prepare: FmriClipPrepareConfig) -> RawRow | BadRow:
    """Return the row with every column that needs no file; BadRow without its session or label."""
    if prepare.group == "session_id" and "session_id" not in row:
        return BadRow(row["origin"], "it belongs to no session; set group=stimulus_id")
    if LABEL in prepare.targets and not row.get("label"):
        return BadRow(row["origin"], "it has no label, which targets=[label] needs; leave that out")
    absent = {"nsd_id": NO_NUMBER, "session": NO_NUMBER, "session_id": "", "label": ""}
    declared = {"split": "test"} if row.get("session") in prepare.test_sessions else {}
    return absent | row | declared


def _check_same_width(first: RawRow, row: RawRow) -> None:
    if row["num_voxels"] == first["num_voxels"]:
        return
    if first["subject"] == row["subject"]:
        raise InputError(
            f"{row['origin']}: {row['num_voxels']} voxels, {first['origin']} has "
            f"{first['num_voxels']}; choose one kind with `files`"
        )
    counts = f"{first['subject']} has {first['num_voxels']} voxels, {row['subject']} {row['num_voxels']}"
    raise InputError(f"{counts}; a dataset has one width: choose with subjects=[{first['subject']}]")


# --- the layouts
# -------------------------------------------------------------------------------------------------------


def _read_nsd(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    options = NsdOptions(
        subjects=prepare.subjects,
        betas=prepare.files or NsdOptions.betas,
        mask=prepare.mask or MASK,
        zscore=prepare.zscore,
        shared1000_to_test=(prepare.test_split, prepare.group) == ("shared1000", "stimulus_id"),
    )
    return read_nsd(source, options)


def _read_events(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    options = EventOptions(
        bold=prepare.files or EventOptions.bold,
        mask=prepare.mask or EventOptions.mask,
        zscore=prepare.zscore,
        delay_s=prepare.hrf_delay_s,
    )
    return read_bold_events(source, options)


def _read_npz(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    targets = [name for name in prepare.targets if name != LABEL]
    return read_fmri_npz(source, prepare.files or "*.npz", targets)


def _read_mindeye(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    return _with_targets(source, read_mindeye_trials(source))


def _read_mindeye2(source: Path, prepare: FmriClipPrepareConfig) -> Rows:
    return _with_targets(source, read_mindeye2(source))


def _with_targets(source: Path, rows: Rows) -> Rows:
    targets = find_targets(source)
    for row in rows:
        yield row if isinstance(row, BadRow) or targets is None else targets.add_to(row)


_READERS: dict[str, Callable[[Path, FmriClipPrepareConfig], Rows]] = {
    "nsd": _read_nsd,
    "events": _read_events,
    "npz": _read_npz,
    "mindeye": _read_mindeye,
    "mindeye2": _read_mindeye2,
}


def _layout(source: Path, prepare: FmriClipPrepareConfig) -> str:
    """Return the layout that is asked for, or the one that the folder is in."""
    if prepare.layout != "auto":
        return prepare.layout
    if find_files(source, STIMULUS_TABLE):
        return "nsd"
    if find_files(source, BETAS_FILES):
        return "mindeye2"
    if any(TAR_NAME.fullmatch(path.name) for path in find_files(source, "*.tar")):
        return "mindeye"
    has_events = bool(find_files(source, f"*{EVENTS}"))
    has_npz = any(path.name != TARGETS for path in source.glob("*.npz"))
    if has_events and has_npz:
        raise InputError(
            f"'{source}' holds both *{EVENTS} and .npz files; choose with layout=events or layout=npz"
        )
    if not has_events and not has_npz:
        raise InputError(
            f"'{source}' holds none of {STIMULUS_TABLE} (NSD), *{EVENTS} (BOLD), *.npz (patterns), "
            f"{BETAS_FILES} (MindEye2) and MindEye's tars; name the folder that holds them"
        )
    return "events" if has_events else "npz"
