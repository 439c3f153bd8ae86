"""fMRI patterns in `.npz` files → raw rows, one per trial: our own layout, and those of three public sets.

The layout is told by the names of the arrays (LAYOUTS). Our own: `<subject>.npz` with x float [N, V], nsd_id
[N] and session [N], and beside them, where there are any, `clip.npz` (see `clip_targets`) and NSD's pictures.
The sets: Haxby 2001 slices, van Gerven's handwritten digits, Kriegeskorte's dissimilarity matrices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxray.config.errors import InputError
from voxray.core.schema import SPLITS
from voxray.core.task import BadRow, RawRow
from voxray.data.formats.clip_targets import FILE_NAME as TARGETS
from voxray.data.formats.clip_targets import ID as TARGET_ID
from voxray.data.formats.clip_targets import PREFIX, ClipTargets, find_targets, load_targets, read_finite
from voxray.data.formats.folder import find_files
from voxray.data.formats.npy import ArrayError, NpzArray, index_npz
from voxray.data.formats.pictures import ArrayPicture, FilePicture, NsdPictures


@dataclass(frozen=True)
class Layout:
    """Which arrays a file holds. x [N, V]; the others [N]; pictures [N, H, W]. Several stimulus columns are
    joined by `-`.
    """

    name: str
    x: str
    stimulus: tuple[str, ...]
    prefix: str = ""  # before the stimulus' id
    session: str | None = None
    label: str | None = None
    split: str | None = None
    pictures: str | None = None  # uint8, grey
    subject: str | None = None  # all rows are of this one; the file's name where it is None


LAYOUTS = (
    Layout("voxray", "x", ("nsd_id",), "nsd", session="session"),
    Layout("haxby blocks", "patterns", ("label",), session="run", label="label", subject="haxby2001_sub001"),
    Layout("haxby volumes", "bold", ("label",), session="run", label="label", subject="haxby2001_sub001"),
    Layout(
        "digits69",
        "fmri",
        ("source_split", "source_row"),
        label="digit",
        split="source_split",
        pictures="stimuli",
    ),
)
# x is a matrix of dissimilarities between the stimuli: [subject, session, stimulus, stimulus].
_RDM, _RDM_SUBJECTS = "rdm", "subject"
_RDM_PICTURES = "images/stim*.png"


def read_fmri_npz(
    source: Path, pattern: str = "*.npz", targets: Sequence[str] = ()
) -> Iterator[RawRow | BadRow]:
    """Yield a row per trial of every file in `source` that `pattern` names, `clip.npz` left out. `targets`
    are further arrays [trials, …] of numbers in each file.

    A row has sample_id (`<file>/<trial>`), subject, stimulus_id (both text; the stimulus is the group), array
    (where x lies), index, num_voxels, origin; session (int), session_id (text, `<subject>/<session>`, the
    group where parts differ by run, as in Haxby's set), label (text), nsd_id (int) and split where the file
    has them; picture where the file or the folder has it; targets ({column: array}) and target_index where
    there is a `clip.npz`; own_targets ({column: array}) where `targets` names them.

    Raises InputError for no file, a damaged one, an unknown layout, and lengths that do not agree.
    """
    files = _find_npz(source, pattern)
    clip, pictures = find_targets(source), NsdPictures(source)
    for path in files:
        arrays = _index(path)
        if {_RDM, _RDM_SUBJECTS} <= arrays.keys():
            yield from _rdm_rows(path, arrays)
        else:
            own = {f"{PREFIX}{name}": _own_target(path, arrays, name) for name in targets}
            for row in _rows(path, arrays, _layout(path, arrays), clip, pictures):
                yield row if isinstance(row, BadRow) or not own else row | {"own_targets": own}


def load_fmri(row: RawRow) -> RawRow:
    """Return the row with x float32 [V] and, where there are targets, a float32 column for each.

    Raises BadRowError, naming file and trial, for values that are not finite and files that changed.
    """
    x_V = read_finite(row, row["array"], row["index"], 1)
    own = {
        name: read_finite(row, array, row["index"], len(array.shape) - 1).reshape(-1)
        for name, array in row.get("own_targets", {}).items()
    }
    return load_targets(row | own | {"x": x_V})


def _find_npz(source: Path, pattern: str) -> list[Path]:
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the .npz files")
    files = [path for path in sorted(source.glob(pattern)) if path.name != TARGETS]
    if not files:
        raise InputError(f"'{source}' holds no {pattern} file of trials; name the folder that holds them")
    root = source.resolve()
    if outside := [path for path in files if not path.resolve().is_relative_to(root)]:
        raise InputError(*(f"'{path}' leads out of the folder; copy the file into it" for path in outside))
    return files


def _index(path: Path) -> dict[str, NpzArray]:
    try:
        return index_npz(path)
    except ArrayError as error:
        raise InputError(f"'{path}': {error}") from error


def _layout(path: Path, arrays: Mapping[str, NpzArray]) -> Layout:
    for layout in LAYOUTS:
        wanted = (layout.x, *layout.stimulus, layout.session, layout.label, layout.split, layout.pictures)
        if all(name in arrays for name in wanted if name):
            return layout
    known = "; ".join(
        f"{', '.join((layout.x, *layout.stimulus, *filter(None, [layout.session])))} ({layout.name})"
        for layout in LAYOUTS
    )
    raise InputError(
        f"'{path}' holds {', '.join(arrays) or 'nothing'}; known layouts are: {known}; "
        "move the file elsewhere, or save it in one of them"
    )


def _own_target(path: Path, arrays: Mapping[str, NpzArray], name: str) -> NpzArray:
    """Return an array of numbers [trials, …] by its name."""
    if name not in arrays:
        raise InputError(f"'{path}' has no array '{name}' for `targets`; it holds {', '.join(arrays)}")
    array, num_trials = arrays[name], arrays[_layout(path, arrays).x].shape[0]
    if len(array.shape) < 2 or array.shape[0] != num_trials or np.dtype(array.dtype).kind not in "fiu":
        raise InputError(
            f"'{path}': '{name}' is {array.dtype} {list(array.shape)}, not numbers [{num_trials}, …], a "
            "target for each trial"
        )
    return array


def _rows(
    path: Path,
    arrays: Mapping[str, NpzArray],
    layout: Layout,
    targets: ClipTargets | None,
    nsd_pictures: NsdPictures,
) -> Iterator[RawRow | BadRow]:
    x = arrays[layout.x]
    if len(x.shape) != 2 or np.dtype(x.dtype).kind not in "fiu":
        raise InputError(f"'{path}': '{layout.x}' is {x.dtype} {list(x.shape)}, not numbers [trials, voxels]")
    num_rows, num_voxels = x.shape
    column = _Columns(path, arrays, num_rows)
    stimuli = [column.text(name) for name in layout.stimulus]
    sessions = column.integers(layout.session) if layout.session else None
    labels = column.text(layout.label) if layout.label else None
    splits = column.splits(layout.split) if layout.split else None
    nsd_ids = column.integers(TARGET_ID) if layout.stimulus == (TARGET_ID,) else None
    pictures = column.pictures(layout.pictures) if layout.pictures else None
    for i in range(num_rows):
        row: RawRow = {
            "sample_id": f"{path.stem}/{i:06d}",
            "subject": layout.subject or path.stem,
            "stimulus_id": layout.prefix + "-".join(values[i] for values in stimuli),
            "array": x,
            "index": i,
            "num_voxels": num_voxels,
            "origin": f"{path.name} trial {i}",
        }
        for name, values in (
            ("session", sessions),
            ("label", labels),
            ("split", splits),
            ("nsd_id", nsd_ids),
            ("picture", pictures),
        ):
            if values is not None:
                row[name] = values[i]
        if sessions is not None:
            row["session_id"] = f"{row['subject']}/{sessions[i]}"
        if nsd_ids is not None:
            row = nsd_pictures.add_to(row)
        yield targets.add_to(row) if targets and nsd_ids is not None else row


def _rdm_rows(path: Path, arrays: Mapping[str, NpzArray]) -> Iterator[RawRow]:
    """Yield a row per subject, session and stimulus: its dissimilarities to all stimuli."""
    pictures = {file.stem: file for file in find_files(path.parent, _RDM_PICTURES)}
    rdm = arrays[_RDM]
    if len(rdm.shape) != 4 or rdm.shape[2] != rdm.shape[3] or np.dtype(rdm.dtype).kind != "f":
        raise InputError(
            f"'{path}': '{_RDM}' is {rdm.dtype} {list(rdm.shape)}, not floating point "
            "[subjects, sessions, stimuli, stimuli]"
        )
    num_subjects, num_sessions, num_stimuli, _ = rdm.shape
    subjects = _Columns(path, arrays, num_subjects).text(_RDM_SUBJECTS)
    for index in range(num_subjects * num_sessions * num_stimuli):
        subject, session, stimulus = np.unravel_index(index, rdm.shape[:3])
        name = f"stim{stimulus + 1:02d}"
        place = f"{subjects[subject]}/{session}/{name}"
        picture = {"picture": FilePicture(str(pictures[name]))} if name in pictures else {}
        yield picture | {
            "sample_id": f"{path.stem}/{place}",
            "subject": subjects[subject],
            "stimulus_id": name,
            "session": int(session),
            "session_id": f"{subjects[subject]}/{session}",
            "array": rdm,
            "index": index,
            "num_voxels": num_stimuli,
            "origin": f"{path.name} {place}",
        }


@dataclass(frozen=True)
class _Columns:
    """Reads the small arrays of a file, each of which must have an entry per trial."""

    path: Path
    arrays: Mapping[str, NpzArray]
    num_rows: int

    def integers(self, name: str) -> list[int]:
        values = self._read(name)
        if values.dtype.kind not in "iu":
            raise InputError(
                f"'{self.path}': '{name}' is {values.dtype}, not whole numbers; save it as int64"
            )
        return values.tolist()

    def text(self, name: str) -> list[str]:
        """Return text; whole numbers are written out, with five digits for picture numbers."""
        values = self._read(name)
        if values.dtype.kind in "iu":
            return [f"{value:05d}" if name == TARGET_ID else str(value) for value in values.tolist()]
        if values.dtype.kind != "U":
            raise InputError(f"'{self.path}': '{name}' is {values.dtype}, neither text nor whole numbers")
        return values.tolist()

    def pictures(self, name: str) -> list[ArrayPicture]:
        array = self.arrays[name]
        if len(array.shape) != 3 or array.shape[0] != self.num_rows or np.dtype(array.dtype) != np.uint8:
            raise InputError(
                f"'{self.path}': '{name}' is {array.dtype} {list(array.shape)}, not uint8 pictures "
                f"[{self.num_rows}, height, width]; save it again"
            )
        return [ArrayPicture(array, i) for i in range(self.num_rows)]

    def splits(self, name: str) -> list[str]:
        values = self.text(name)
        if unknown := sorted(set(values) - set(SPLITS)):
            raise InputError(f"'{self.path}': '{name}' says '{unknown[0]}'; splits are {', '.join(SPLITS)}")
        return values

    def _read(self, name: str) -> np.ndarray:
        array = self.arrays[name]
        if array.shape != (self.num_rows,):
            raise InputError(
                f"'{self.path}': '{name}' has the shape {list(array.shape)}, not [{self.num_rows}], an entry "
                "per trial; save the file again"
            )
        try:
            return array.read()
        except ArrayError as error:
            raise InputError(f"'{self.path}': {error}") from error
